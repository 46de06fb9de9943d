"""Removing ended tasks because an operator asks for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.control_plane.maintenance.batch_pace import BatchPace
from llama_deploy.control_plane.maintenance.task_removal import RemovalPlan, TaskRemoval
from llama_deploy.errors import InvalidRequestError
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.retention_rows import EndedFilter, EndedTask, Place
from llama_deploy.types import TaskStatus
from llama_deploy.types.retention import KeptDays, PurgeAnswer, PurgeCount, PurgeRequest

_PAGE: Final = 200
_MAX_SECONDS: Final = 10.0
"""How long one request works: the caller repeats it until nothing is left."""
_TERMINAL: Final = tuple(status for status in TaskStatus if status.is_terminal)


@dataclass(frozen=True, slots=True)
class Purge:
    """Removes ended tasks by their age, status and service, as retention does, and counts those of a dry run.

    Each transaction removes a limited number. A purge that is interrupted has removed whole tasks only.
    """

    store: StateStore
    removal: TaskRemoval
    clock: Callable[[], datetime]
    """Returns the present time, aware, UTC."""
    task_days: KeptDays
    """The age of what is removed if a request does not say."""

    async def run(self, request: PurgeRequest) -> PurgeAnswer:
        """Carry out a request.

        Raises:
            InvalidRequestError: Neither the request nor the settings say how old tasks must be.
            UnavailableError: The store does not answer.
        """
        before = self.clock() - self._age(request)
        which = EndedFilter(tuple(request.status), request.service)
        if request.dry_run:
            found = await self.store.read(lambda tx: tx.retention.counts(which, before=before))
            matching = [
                PurgeCount(
                    service_name=each.service_name,
                    status=each.status,
                    tasks=each.task_count,
                    oldest=each.oldest,
                )
                for each in found
            ]
            return PurgeAnswer(dry_run=True, before=before, matching=matching)
        removed, more = await self._remove(which, before=before, limit=request.limit)
        if not more:
            while await self.removal.delete_some_rest():
                pass
        return PurgeAnswer(dry_run=False, before=before, removed=removed, more=more)

    def _age(self, request: PurgeRequest) -> timedelta:
        if request.older_than_seconds is not None:
            return timedelta(seconds=request.older_than_seconds)
        if isinstance(self.task_days, int | float):
            return timedelta(days=self.task_days)
        raise InvalidRequestError(
            "retention_task_days is off, so the request has to say how old tasks must be: set"
            " older_than_seconds (on the command line: --older-than)"
        )

    async def _remove(self, which: EndedFilter, *, before: datetime, limit: int) -> tuple[int, bool]:
        """Remove tasks, and return how many, and whether there may be more."""
        pace = BatchPace.of(self.store, hurried=True)
        end = time.monotonic() + _MAX_SECONDS
        count = 0
        for status in which.statuses or _TERMINAL:
            after: Place | None = None
            while page := await self._page(status, before, after):
                after = page[-1].place
                due = [task for task in page if which.service_name in (None, task.service_name)]
                while due and count < limit and time.monotonic() < end:
                    plan, removed = await self._remove_first(due, pace)
                    due = due[len(plan.tasks) :]
                    count += removed
                if count >= limit or time.monotonic() >= end:
                    return count, True
        return count, False

    async def _page(self, status: TaskStatus, before: datetime, after: Place | None) -> list[EndedTask]:
        return await self.store.read(
            lambda tx: tx.retention.ended(status, before=before, after=after, limit=_PAGE)
        )

    async def _remove_first(self, due: Sequence[EndedTask], pace: BatchPace) -> tuple[RemovalPlan, int]:
        """Remove the first of some tasks in one transaction, and leave the store to others for a while."""
        first = due[: pace.tasks]
        plan = await self.store.read(lambda tx: self.removal.plan(tx, first))
        if not plan.removed:
            return plan, 0
        begun = time.monotonic()
        removed = await self.removal.remove(plan)
        pace.note(begun)
        await asyncio.sleep(pace.pause)
        return plan, removed
