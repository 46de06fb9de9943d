"""Waiting until the reports that are in the queue now are stored."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from llama_deploy.errors import LlamaDeployError
from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.messages import QueueMessage
from llama_deploy.state_stores.base import StateStore
from llama_deploy.types import generate_id
from llama_deploy.types.topics import CONTROL_PLANE

logger = logging.getLogger(__name__)

_MARK: Final = "report_mark"


class ReportBarrier:
    """Sends a mark through the queue of reports, behind those that are in it.

    The mark proves something only if the queue keeps the order, and no other control plane takes reports.
    Otherwise the wait lasts all its time, in which reports usually arrive.

    Args:
        queue: Where the consumer gets the reports.
        topic: The topic that it reads.
        store: Knows whether there are other control planes.
    """

    def __init__(self, queue: AbstractMessageQueue, topic: str, *, store: StateStore) -> None:
        self._queue = queue
        self._topic = topic
        self._store = store
        self._awaited: dict[str, asyncio.Future[None]] = {}

    async def wait(self, seconds: float) -> None:
        """Return when the reports that are in the queue now are stored, or after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                if not self._queue.ordered or await self._store.has_company():
                    await asyncio.sleep(seconds)
                else:
                    await self._follow_mark()
        except (TimeoutError, LlamaDeployError) as exc:
            logger.debug("reports may still be in the queue: %r", exc, extra={"action": "reports_in_queue"})

    async def _follow_mark(self) -> None:
        mark = generate_id()
        passed = self._awaited[mark] = asyncio.get_running_loop().create_future()
        try:
            message = QueueMessage(publisher_id=CONTROL_PLANE, type=CONTROL_PLANE, data={_MARK: mark})
            await self._queue.publish(message, self._topic)
            await passed
        finally:
            del self._awaited[mark]

    def passed(self, message: QueueMessage) -> None:
        """A mark, of this control plane or another, and all reports before it were taken."""
        awaited = self._awaited.get(str(message.data[_MARK]))
        if awaited is not None and not awaited.done():
            awaited.set_result(None)


def is_mark(message: QueueMessage) -> bool:
    """Whether a message is no report, but the mark of a barrier."""
    data: dict[str, Any] = message.data
    # An older release knows no action for it, and would not even read one that it does not know.
    return message.action is None and _MARK in data
