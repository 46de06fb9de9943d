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

from llama_deploy.testing.state_store_suite.quantity_cases import QuantityTests
from llama_deploy.testing.state_store_suite.row_cases import RowTests
from llama_deploy.testing.state_store_suite.run_cases import RunTests
from llama_deploy.testing.state_store_suite.task_cases import TaskTests
from llama_deploy.testing.state_store_suite.transaction_cases import TransactionTests
from llama_deploy.testing.state_store_suite.version_cases import VersionTests

__all__ = ["StateStoreContract"]


class StateStoreContract(TransactionTests, TaskTests, RunTests, RowTests, VersionTests, QuantityTests):
    """The behaviour that `llama_deploy.state_stores.base` promises. Needs pytest and pytest-asyncio."""
