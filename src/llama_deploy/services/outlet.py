"""Handing reports to a queue that may be away, be full, or refuse the credentials for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from llama_deploy.backoff import Backoff
from llama_deploy.errors import ClosedError, LlamaDeployError
from llama_deploy.message_queues.base import is_refused_for_good
from llama_deploy.messages import QueueMessage

logger = logging.getLogger(__name__)

_RETRY: Final = Backoff(first=0.1, longest=5.0)


class Outlet:
    """Hands reports to the queue, again and again while it takes none, and tells of that once.

    Args:
        publish: Hands a message to the queue, once.
    """

    def __init__(self, publish: Callable[[QueueMessage], Awaitable[None]]) -> None:
        self._publish = publish
        self._is_shut = False

    async def publish(self, message: QueueMessage) -> None:
        """Return when the queue has the message.

        Raises:
            LlamaDeployError: The queue refuses the message for good, or is closed.
        """
        failures = 0
        while True:
            try:
                await self._publish(message)
            except LlamaDeployError as exc:
                if is_refused_for_good(exc) or isinstance(exc, ClosedError):
                    raise
                failures += 1
                self._note_shut(message, exc)
                await asyncio.sleep(_RETRY.delay(failures))
            else:
                if failures:
                    self._note_open()
                return

    def _note_shut(self, message: QueueMessage, exc: LlamaDeployError) -> None:
        logger.log(
            logging.DEBUG if self._is_shut else logging.WARNING,
            "the queue does not take message %s, it is tried again: %s",
            message.id_,
            exc,
            extra={"action": "publish_retry", "message_id": message.id_},
        )
        self._is_shut = True

    def _note_open(self) -> None:
        if self._is_shut:
            self._is_shut = False
            logger.info("the queue takes messages again", extra={"action": "queue_back"})
