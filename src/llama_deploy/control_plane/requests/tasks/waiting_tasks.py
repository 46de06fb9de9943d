"""How many tasks of each service wait for an instance, and how many may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from llama_deploy.errors import OverloadedError
from llama_deploy.state_stores.base import StateStore

_COUNTING_SHARE: Final = 20
"""The next count of a service's tasks is this many times as far away as the last one took."""
_RETRY_AFTER: Final = 2.0
"""Seconds after which a client should submit a rejected task again."""


@dataclass(slots=True)
class _Estimate:
    """How many tasks of one service wait at most."""

    tasks: int
    """Those of the last count, and all that were accepted since."""
    accepted: int = 0
    """How many tasks were accepted here, in all."""
    count_again_at: float = 0.0
    """When they may be counted again, by the loop's clock."""
    counting: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class WaitingTasks:
    """Rejects tasks of services for which too many tasks wait. Use it in one event loop.

    The store counts only if the tasks that were accepted since the last count may have reached the limit. So
    the limit is exact where it matters, and costs nothing while tasks are taken as they come. Control planes
    that share a store learn of each other's tasks with the next count.
    """

    store: StateStore
    max_tasks: int
    """How many tasks of one service may wait."""
    max_messages: int
    """How many messages to one service may wait for the queue."""
    messages: Callable[[str], int]
    """Returns how many messages to a service wait for the queue."""
    _estimates: dict[str, _Estimate] = field(default_factory=dict, init=False)

    def accepted(self, service_name: str) -> None:
        """A task of a service is accepted."""
        estimate = self._estimates.get(service_name)
        if estimate is None:
            # Of tasks that were accepted before, the next check learns.
            estimate = self._estimates[service_name] = _Estimate(self.max_tasks)
        estimate.tasks += 1
        estimate.accepted += 1

    async def check(self, service_name: str) -> None:
        """Return if a service may get another task.

        Raises:
            OverloadedError: Too many of its tasks, or of the messages to it, wait.
        """
        if self.messages(service_name) >= self.max_messages:
            raise OverloadedError(
                f"{self.max_messages} messages to service {service_name!r} wait for the message queue"
                " (max_backlog of the control plane); submit the task again later",
                retry_after=_RETRY_AFTER,
            )
        estimate = self._estimates.get(service_name)
        if estimate is None or estimate.tasks < self.max_tasks:
            return
        if asyncio.get_running_loop().time() >= estimate.count_again_at:
            if estimate.counting is None:
                estimate.counting = asyncio.create_task(self._count(service_name, estimate))
            await asyncio.shield(estimate.counting)
        if estimate.tasks >= self.max_tasks:
            raise OverloadedError(
                f"service {service_name!r} has {estimate.tasks} waiting tasks, and may have {self.max_tasks}"
                " (max_queued_tasks of the control plane); submit the task again when some have started",
                retry_after=_RETRY_AFTER,
            )

    async def _count(self, service_name: str, estimate: _Estimate) -> None:
        loop = asyncio.get_running_loop()
        begun_at, accepted = loop.time(), estimate.accepted
        try:
            counted = await self.store.read(lambda tx: tx.tasks.count_waiting(service_name))
        finally:
            estimate.counting = None
        # Those accepted meanwhile may be among them.
        estimate.tasks = counted + estimate.accepted - accepted
        estimate.count_again_at = loop.time() + _COUNTING_SHARE * (loop.time() - begun_at)
