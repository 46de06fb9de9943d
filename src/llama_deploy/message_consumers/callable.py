"""A consumer that calls a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pydantic import Field

from llama_deploy.message_consumers.base import BaseMessageQueueConsumer
from llama_deploy.messages import QueueMessage


class CallableMessageConsumer(BaseMessageQueueConsumer):
    """Calls `handler` with each message."""

    handler: Callable[[QueueMessage], Any] = Field(repr=False)
    """A function or a coroutine function. A function runs in the event loop, so it must not block."""

    async def _process_message(self, message: QueueMessage) -> Any:
        result = self.handler(message)
        return await result if inspect.isawaitable(result) else result
