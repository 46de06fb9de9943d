"""The tasks that came over the topic of this instance alone, until there is a slot for each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from llama_deploy.messages import QueueMessage
from llama_deploy.services.worker.message_data import parse_data
from llama_deploy.services.worker.work_slots import WorkSlots
from llama_deploy.types.instance_protocol import TaskDispatch

logger = logging.getLogger(__name__)

MAX_OFFERED: Final = 1_000
"""How many tasks may wait for a slot. The control plane offers the others again."""


@dataclass(slots=True, eq=False)
class OfferedTasks:
    """Tasks that not every instance of the service can run. Each is claimed when there is a slot for it.

    They do not wait in the queue, so that events and cancellations, which use the same topic, do not wait
    behind them. One that is lost here is offered again.
    """

    slots: WorkSlots
    take: Callable[[QueueMessage], Coroutine[Any, Any, None]]
    """Claims a task and runs it."""
    _waiting: dict[tuple[str, int], QueueMessage] = field(default_factory=dict, init=False)
    """By task and attempt, which may be offered repeatedly."""
    _came: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def add(self, message: QueueMessage) -> None:
        """Keep a `new_task` message until there is a slot.

        Raises:
            InvalidRequestError: It is malformed.
        """
        dispatch = parse_data(TaskDispatch, message)
        if len(self._waiting) < MAX_OFFERED:
            self._waiting[dispatch.task_id, dispatch.attempt] = message
            self._came.set()

    async def run(self) -> None:
        """Take tasks while there are free slots; until cancelled."""
        while True:
            while not self._waiting:
                self._came.clear()
                await self._came.wait()
            await self.slots.wait_for_free()
            key = next(iter(self._waiting))
            self.slots.tasks.spawn(self.take(self._waiting.pop(key)))
