"""The base class of queues before 0.4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_deploy.message_queues.base import AbstractMessageQueue


class BaseMessageQueue(AbstractMessageQueue):
    """A queue with `cleanup_local` in place of `cleanup`.

    What such a class implements beside `_publish`, `register_consumer`, `deregister_consumer` and `as_config`
    is for its own programs: `processing_loop`, `launch_local` and `launch_server` are not called.
    """

    async def cleanup_local(self, message_types: Sequence[str], *args: Any, **kwargs: Any) -> None:
        """Free what the queue holds."""

    async def cleanup(self) -> None:
        """Call `cleanup_local`."""
        await self.cleanup_local([])
