"""The contract of a message queue as tests.

A backend shows that it keeps the contract of `llama_deploy.message_queues.base` by inheriting them:

```python
class TestMyQueue(MessageQueueContract):
    @pytest_asyncio.fixture
    async def connect(self) -> AsyncIterator[Connect]:
        async with my_broker(visibility_timeout=self.visibility_timeout) as broker:
            yield broker.connect
```

The tests need `pytest-asyncio`, in any of its modes. They wait for what shall happen, with a deadline, and
never for time to pass.

The tests stand in modules by what they are about; the class brings all of them together.
"""

from __future__ import annotations

from llama_deploy.testing.message_queue_suite.base import Connect
from llama_deploy.testing.message_queue_suite.closing_cases import ClosingTests
from llama_deploy.testing.message_queue_suite.consumer_cases import ConsumerTests
from llama_deploy.testing.message_queue_suite.delivery_cases import DeliveryTests
from llama_deploy.testing.message_queue_suite.publishing_cases import PublishingTests

__all__ = ["Connect", "MessageQueueContract"]


class MessageQueueContract(PublishingTests, DeliveryTests, ConsumerTests, ClosingTests):
    """Inherit it, override `connect`, and set the flags to what the backend is."""
