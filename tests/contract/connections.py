"""What connects the contract of the queues to a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from llama_deploy.message_queues.base import AbstractMessageQueue, MessageQueueConfig
from llama_deploy.testing.message_queue_suite import Connect


@asynccontextmanager
async def connecting(config: MessageQueueConfig) -> AsyncIterator[Connect]:
    """Yield what opens one more connection; some tests leave one open, as one that dies does."""
    async with AsyncExitStack() as opened:

        async def connect() -> AbstractMessageQueue:
            return await opened.enter_async_context(await config.connect())

        yield connect
