"""How far the walks over ended tasks have come: stored, and changed together with what they remove."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.control_plane.decisions.retention_rules import decode_cursors, encode_cursors
from llama_deploy.errors import LlamaDeployError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.retention_rows import Place, RetentionProgress

_WALK_AGAIN: Final = timedelta(days=1)
"""How old the walks become before they begin at the oldest task again: they may have passed over tasks that
somebody needed at that moment, and over tasks that were stored with an earlier end."""
_FORGET_POLICY: Final = timedelta(days=90)

Work = Callable[[StoreTransaction], tuple[int, bool]]
"""Removes something, and returns how many tasks, and whether that was all of it."""


class ProgressTakenError(LlamaDeployError):
    """Another control plane removes tasks now, or has since this one has read where to go on."""


@dataclass(slots=True, eq=False)
class WalkProgress:
    """The cursors of the walks of a policy."""

    store: StateStore
    name: str
    """Of the policy."""
    clock: Callable[[], datetime]
    """Returns the present time, aware, UTC."""
    _cursors: dict[str, Place] = field(default_factory=dict, init=False)
    _stored: str = field(default="", init=False)
    """What they are based on."""

    async def load(self) -> None:
        """Read how far the walks have come.

        Raises:
            ProgressTakenError: See there.
            UnavailableError: The store does not answer.
        """
        known = await self.store.read(lambda tx: tx.retention.progress(self.name))
        now = self.clock()
        if known is not None and timedelta() <= now - known.begun_at < _WALK_AGAIN:
            self._stored = known.cursors
            self._cursors = decode_cursors(known.cursors)
            return
        fresh = RetentionProgress(self.name, encode_cursors({}), begun_at=now, changed_at=now)

        def begin(tx: StoreTransaction) -> None:
            if known is not None and tx.retention.take_progress(self.name) != known:
                raise ProgressTakenError
            tx.retention.put_progress(fresh)
            tx.retention.forget_progress(before=now - _FORGET_POLICY)

        await self.store.transact(begin)
        self._stored, self._cursors = fresh.cursors, {}

    def of(self, walk: str) -> Place | None:
        """Return where a walk stands. None: at the oldest task."""
        return self._cursors.get(walk)

    def pass_over(self, walk: str, place: Place) -> None:
        """A walk has come to a place, and nothing was to be removed. This is stored with what is next."""
        self._cursors[walk] = place

    async def remove(self, walk: str, place: Place | None, work: Work) -> tuple[int, bool]:
        """Remove something in a transaction. If it was all, the walk stands at `place` afterwards.

        Args:
            walk: The name of the walk.
            place: None: it stays where it is.
            work: Removes.

        Returns:
            What `work` returns.

        Raises:
            ProgressTakenError: See there. Nothing was removed.
            UnavailableError: The store does not answer.
        """
        after = self._cursors if place is None else {**self._cursors, walk: place}
        text = encode_cursors(after)

        def run(tx: StoreTransaction) -> tuple[int, bool]:
            progress = tx.retention.take_progress(self.name)
            if progress is None or progress.cursors != self._stored:
                raise ProgressTakenError
            count, is_all = work(tx)
            if is_all and text != progress.cursors:
                tx.retention.put_progress(progress._replace(cursors=text, changed_at=self.clock()))
            return count, is_all

        # If that is lost, the tasks are still there, and are removed again.
        count, is_all = await self.store.transact(run, synced=False)
        if is_all:
            self._cursors, self._stored = dict(after), text
        return count, is_all

    async def save(self) -> None:
        """Store how far the walks have come, if that has changed.

        Raises:
            ProgressTakenError: See there.
            UnavailableError: The store does not answer.
        """
        if encode_cursors(self._cursors) != self._stored:
            await self.remove("", None, lambda _: (0, True))
