"""Removes ended tasks and their events when they are old enough, in short transactions, in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar

from llama_deploy.control_plane.decisions.retention_rules import Pass, Removal, RetentionPolicy
from llama_deploy.control_plane.maintenance.batch_pace import BatchPace
from llama_deploy.control_plane.maintenance.empty_sessions import EmptySessions
from llama_deploy.control_plane.maintenance.task_removal import RemovalPlan, TaskRemoval, TrimPlan
from llama_deploy.control_plane.maintenance.walk_progress import ProgressTakenError, WalkProgress
from llama_deploy.errors import LlamaDeployError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.retention_rows import EndedTask, Place

logger = logging.getLogger(__name__)

T = TypeVar("T")

SWEEP_SECONDS: Final = 60.0
"""How long after a sweep the next one begins."""
FIRST_SWEEP_SECONDS: Final = 5.0
"""How long after its start a control plane sweeps: first it resumes what it has to do."""
_PAGE: Final = 200
"""How many ended tasks are read together; a transaction removes fewer."""
_TRIMMED_SHARE: Final = 4
"""How many tasks are looked at for each whose events are removed: many have only the terminal one."""
_READ_PAUSE: Final = 0.01
"""Seconds between two reads that have found nothing to remove."""
_FORGOTTEN_PER_TASK: Final = 3
"""How many ids may be forgotten in the time in which one task is removed."""
_FREED_PER_TASK: Final = 3
"""How many pages may be returned to the file system in that time."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What one transaction, or several for a large task, removes."""

    place: Place
    """Where the walk stands after it."""
    removal: RemovalPlan | None = None
    trim: TrimPlan | None = None

    @property
    def size(self) -> int:
        """How many tasks it deals with."""
        return len((self.trim or self.removal or RemovalPlan()).tasks)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be removed."""
        return not (self.removal and self.removal.removed) and not (self.trim and self.trim.lasts)


@dataclass(slots=True, eq=False)
class Retention:
    """Sweeps the ended tasks. Any control plane does; for each transaction, one of them takes the progress.

    A transaction removes a limited number of rows and bytes, and says how far the walk has come. So it can be
    interrupted at any moment.
    """

    store: StateStore
    policy: RetentionPolicy
    removal: TaskRemoval
    sessions: EmptySessions
    clock: Callable[[], datetime]
    """Returns the present time, aware, UTC."""
    removed_for: timedelta
    """For how long the ids of removed tasks are remembered."""
    pace: BatchPace = field(init=False)
    _progress: WalkProgress = field(init=False)
    _count: int = field(default=0, init=False)
    """How many tasks the sweep has removed."""

    def __post_init__(self) -> None:
        """Begin with the stored progress of the policy."""
        self.pace = BatchPace.of(self.store)
        self._progress = WalkProgress(self.store, self.policy.name, self.clock)

    async def run(self) -> None:
        """Sweep until cancelled. What fails is tried again with the next sweep."""
        await asyncio.sleep(FIRST_SWEEP_SECONDS)
        while True:
            try:
                await self.removal.known.look(self.store)
                if count := await self.sweep():
                    logger.info("%d ended tasks were removed", count, extra={"action": "retention"})
            except LlamaDeployError as exc:
                logger.warning("old tasks cannot be removed now: %s", exc, extra={"action": "retention"})
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> int:
        """Remove what is due, and return how many tasks were removed.

        Raises:
            UnavailableError: The store does not answer.
        """
        self._count = 0
        try:
            await self._progress.load()
            for each in self.policy.passes():
                await self._walk(each)
            await self._progress.save()
        except ProgressTakenError:
            return self._count  # the other control plane goes on
        await self._clean_up()
        return self._count

    async def _walk(self, each: Pass) -> None:
        """Remove what is due of a pass."""
        cutoff = await self._cutoff(each)
        while cutoff is not None and (page := await self._page(each, cutoff)):
            due = [task for task in page if self.policy.rule_of(task) == each.rule]
            if not due:
                await asyncio.sleep(_READ_PAUSE)
            while due:
                step = await self._next(each, due)
                due = due[step.size :]
                if step.is_empty:
                    self._progress.pass_over(each.name, step.place)
                    await asyncio.sleep(_READ_PAUSE)
                else:
                    await self._carry_out(each, step)
            self._progress.pass_over(each.name, page[-1].place)

    async def _page(self, each: Pass, cutoff: datetime) -> list[EndedTask]:
        """Return the tasks that follow in a walk, of any rule."""
        after = self._progress.of(each.name)
        return await self.store.read(
            lambda tx: tx.retention.ended(each.status, before=cutoff, after=after, limit=_PAGE)
        )

    async def _cutoff(self, each: Pass) -> datetime | None:
        counted = None
        if (counts := self.policy.counts(each)) is not None:
            which, kept = counts
            counted = await self.store.read(lambda tx: tx.retention.newest(which, count=kept))
        return self.policy.cutoff(each, now=self.clock(), counted=counted)

    async def _next(self, each: Pass, due: Sequence[EndedTask]) -> _Step:
        """Return what one transaction removes: the first ones of the tasks that are due, as many as fit."""
        most = self.pace.tasks

        def read(tx: StoreTransaction) -> _Step:
            if each.removal is Removal.TASKS:
                removal = self.removal.plan(tx, due[:most])
                return _Step(removal.tasks[-1].place, removal=removal)
            trim = self.removal.plan_trim(tx, due[: _TRIMMED_SHARE * most], most=most)
            return _Step(trim.tasks[-1].place, trim=trim)

        return await self.store.read(read)

    async def _carry_out(self, each: Pass, step: _Step) -> None:
        def work(tx: StoreTransaction) -> tuple[int, bool]:
            self.pace.begin()
            if step.trim is not None:
                return 0, self.removal.trim(tx, step.trim)
            return self.removal.carry_out(tx, step.removal or RemovalPlan()), True

        self.removal.known.begin()
        is_all = False
        while not is_all:
            count, is_all = await self._paced(self._progress.remove(each.name, step.place, work))
            self._count += count

    async def _clean_up(self) -> None:
        """Delete what belongs to no task that is still stored, and make the store smaller."""
        while await self._paced(self.removal.delete_some_rest()):
            pass
        before = self.clock() - self.removed_for
        while await self._paced(self._forget_some(before)):
            pass
        await self.sessions.sweep()
        while await self._paced(self.store.shrink(max_pages=_FREED_PER_TASK * self.pace.tasks)):
            pass

    async def _forget_some(self, before: datetime) -> int:
        limit = _FORGOTTEN_PER_TASK * self.pace.tasks

        def work(tx: StoreTransaction) -> int:
            self.pace.begin()
            return tx.retention.forget_removed(before=before, limit=limit)

        return await self.store.transact(work, synced=False)

    async def _paced(self, change: Awaitable[T]) -> T:
        """Wait for a transaction, and leave the store to others for a while."""
        begun = time.monotonic()
        done = await change
        self.pace.note(begun)
        await asyncio.sleep(self.pace.pause)
        return done
