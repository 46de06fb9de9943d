"""What operators ask of the store: how large it is, and to remove what is old."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.decisions.retention_rules import RetentionPolicy, settings_of
from llama_deploy.control_plane.maintenance.batch_pace import limits_of
from llama_deploy.control_plane.maintenance.empty_sessions import EmptySessions
from llama_deploy.control_plane.maintenance.purge import Purge
from llama_deploy.control_plane.maintenance.retention import Retention
from llama_deploy.control_plane.maintenance.task_removal import TaskRemoval
from llama_deploy.control_plane.storage.removed_ids import KnownRemovals
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.types import TaskStatus
from llama_deploy.types.retention import PurgeAnswer, PurgeRequest, StorageView, TableSize

_FAR: Final = timedelta(days=36_500)


class Storage:
    """The size of a store, its retention, and purges.

    Args:
        store: The store.
        config: The settings of retention.
        removals: Learns that tasks were removed.
        clock: Returns the present time, aware, UTC.
    """

    def __init__(
        self,
        store: StateStore,
        config: ControlPlaneConfig,
        *,
        removals: KnownRemovals,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        days = config.retention_session_days
        removal = TaskRemoval(store, removals, clock, limits_of(store))
        self.retention = Retention(
            store=store,
            policy=RetentionPolicy.of(config),
            removal=removal,
            sessions=EmptySessions(
                store, clock, timedelta(days=days) if isinstance(days, int | float) else None
            ),
            clock=clock,
            removed_for=timedelta(days=config.retention_removed_days),
        )
        """Removes what is old, in the background."""
        self._purge = Purge(store, removal, clock, config.retention_task_days)

    async def purge(self, request: PurgeRequest) -> PurgeAnswer:
        """Remove ended tasks, or count them. A request removes a limited number; repeat it while `more`.

        Raises:
            InvalidRequestError: Neither the request nor the settings say how old tasks must be.
            UnavailableError: The store does not answer.
        """
        return await self._purge.run(request)

    async def view(self, *, exact: bool = False) -> StorageView:
        """Return how large the store is.

        Args:
            exact: Whether to measure and count everything, which reads the whole store.

        Raises:
            UnavailableError: The store does not answer.
        """
        sizes = await self._store.sizes(exact=exact)
        end = self._clock() + _FAR

        def read(tx: StoreTransaction) -> tuple[dict[TaskStatus, datetime], bool]:
            first = {
                status: found[0].ended_at
                for status in TaskStatus
                if status.is_terminal and (found := tx.retention.ended(status, before=end, limit=1))
            }
            return first, tx.retention.has_removed()

        oldest, removed = await self._store.read(read)
        return StorageView(
            store=sizes.store,
            total_bytes=sizes.total_bytes,
            free_bytes=sizes.free_bytes,
            log_bytes=sizes.log_bytes,
            tables=[TableSize(name=each.name, rows=each.rows, bytes=each.bytes) for each in sizes.tables],
            oldest_ended={status.value: at for status, at in oldest.items()},
            removed_tasks=removed,
            retention=settings_of(self._config),
        )
