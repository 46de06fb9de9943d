"""The packs of event streams in SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import sqlalchemy as sa

from llama_deploy.state_stores.event_packs import unpacked
from llama_deploy.state_stores.records import EventPackRecord, EventRecord
from llama_deploy.state_stores.sql.access import SQLRepository, upserts
from llama_deploy.state_stores.sql.queries import KEY, Mapper, Query
from llama_deploy.state_stores.sql.tables import event_packs, events

_LAST: Final = 2**63 - 1

_PACK = Mapper(EventPackRecord, event_packs)
_PACK_BEFORE = Query.unlocked(
    _PACK.where(
        event_packs.c.task_id == sa.bindparam("task_id"), event_packs.c.position <= sa.bindparam("position")
    )
    .order_by(event_packs.c.position.desc())
    .limit(sa.literal_column("1"))
)
_PUT_PACKS = upserts(event_packs)
_DELETE_PACKED_EVENTS = sa.delete(events).where(
    events.c.task_id == sa.bindparam(KEY),
    events.c.position >= sa.bindparam("first"),
    events.c.position < sa.bindparam("end"),
    events.c.terminal.is_(sa.false()),
)


class PackRows(SQLRepository):
    """Packs in the table `event_packs`."""

    def events(self, task_id: str, *, after: int) -> Iterator[EventRecord]:
        """Yield the events in packs that follow a position without a gap, each when it is asked for."""
        while (pack := self._before(task_id, after + 1)) is not None:
            last = pack.position + pack.length - 1
            if last <= after:
                return
            yield from unpacked(pack, after=after)
            after = last

    def last(self, task_id: str) -> EventPackRecord | None:
        """Return the last pack of a task's stream, None if there is none."""
        return self._before(task_id, _LAST)

    def put(self, packs: Sequence[EventPackRecord]) -> None:
        """Store packs in place of the events in them."""
        self._access.put(_PUT_PACKS, _PACK.rows(packs))
        covered: list[dict[str, object]] = [
            {KEY: pack.task_id, "first": pack.position, "end": pack.position + pack.length} for pack in packs
        ]
        self._access.write(_DELETE_PACKED_EVENTS, covered)

    def _before(self, task_id: str, position: int) -> EventPackRecord | None:
        rows = self._access.rows(_PACK_BEFORE, {"task_id": task_id, "position": position})
        return next((_PACK.record(row) for row in rows), None)
