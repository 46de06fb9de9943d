"""What every state store must do, as tests to inherit.

A backend's tests are one class:

```python
class TestMyStore(StateStoreContract):
    store_type = MyStateStore

    @pytest.fixture
    def uri(self, tmp_path: Path) -> str:
        return f"my:///{tmp_path}/store"
```

The tests stand in modules by what they are about; the class brings all of them together.
"""

from __future__ import annotations

from llama_deploy.testing.state_store_suite.audit_cases import AuditTests
from llama_deploy.testing.state_store_suite.feed_cases import FeedTests
from llama_deploy.testing.state_store_suite.key_cases import ApiKeyTests
from llama_deploy.testing.state_store_suite.list_cases import ListTests
from llama_deploy.testing.state_store_suite.owner_cases import OwnerTests
from llama_deploy.testing.state_store_suite.pack_cases import PackTests
from llama_deploy.testing.state_store_suite.quantity_cases import QuantityTests
from llama_deploy.testing.state_store_suite.question_cases import QuestionTests
from llama_deploy.testing.state_store_suite.retention_cases import RetentionTests
from llama_deploy.testing.state_store_suite.row_cases import RowTests
from llama_deploy.testing.state_store_suite.run_cases import RunTests
from llama_deploy.testing.state_store_suite.task_cases import TaskTests
from llama_deploy.testing.state_store_suite.transaction_cases import TransactionTests
from llama_deploy.testing.state_store_suite.version_cases import VersionTests

__all__ = ["StateStoreContract"]


class StateStoreContract(
    TransactionTests,
    TaskTests,
    ListTests,
    OwnerTests,
    RunTests,
    PackTests,
    FeedTests,
    RowTests,
    QuestionTests,
    ApiKeyTests,
    AuditTests,
    VersionTests,
    RetentionTests,
    QuantityTests,
):
    """The behaviour that `llama_deploy.state_stores.base` promises. Needs pytest and pytest-asyncio."""
