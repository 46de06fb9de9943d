"""The audit log in SQL."""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import product

import sqlalchemy as sa

from llama_deploy.state_stores.audit_repository import (
    AuditConditions,
    AuditPlace,
    AuditRecord,
    AuditRepository,
)
from llama_deploy.state_stores.sql.access import SQLRepository, limit
from llama_deploy.state_stores.sql.queries import Inserts, Mapper, Query
from llama_deploy.state_stores.sql.tables import UtcMicroseconds, audit, audit_is_of_tenant

_ENTRY = Mapper(AuditRecord, audit)
_INSERTS = Inserts(_ENTRY)
_time = UtcMicroseconds()
_at = sa.bindparam("at", type_=_time)
_is_recent = audit.c.at >= sa.bindparam("since", type_=_time)
_is_before = sa.tuple_(audit.c.at, audit.c.position) < sa.tuple_(_at, sa.bindparam("place"))
_order = (audit.c.at.desc(), audit.c.position.desc())


def _page(*names: str) -> Query:
    conditions = [audit.c[name] == sa.bindparam(name) for name in names]
    return Query.unlocked(
        sa.select(*_ENTRY.columns, audit.c.position)
        .where(_is_recent, _is_before, *conditions)
        .order_by(*_order)
        .limit(limit)
    )


def _pages() -> dict[tuple[bool, ...], Query]:
    """Return the query for each combination of conditions."""
    names = AuditConditions._fields
    combinations = product((False, True), repeat=len(names))
    return {
        each: _page(*(name for name, is_given in zip(names, each, strict=True) if is_given))
        for each in combinations
    }


_PAGES = _pages()
_OF_TENANT = Query.unlocked(
    sa.select(*_ENTRY.columns, audit.c.position)
    .where(_is_recent, _is_before, audit.c.tenant == sa.bindparam("tenant"), audit_is_of_tenant)
    .order_by(*_order)
    .limit(limit)
)
_oldest = sa.select(audit.c.position).where(audit.c.at < _at).order_by(audit.c.at).limit(limit)
_REMOVE = sa.delete(audit).where(audit.c.position.in_(_oldest)).returning(audit.c.position)


class SQLAudit(SQLRepository, AuditRepository):
    """Entries in the table `audit`."""

    def append(self, entries: Sequence[AuditRecord]) -> None:
        self._access.insert(_INSERTS, entries)

    def page(
        self, conditions: AuditConditions, *, since: datetime, before: AuditPlace, limit: int
    ) -> list[tuple[AuditPlace, AuditRecord]]:
        given = {name: value for name, value in conditions._asdict().items() if value is not None}
        # The index of a tenant is partial, so the query has to say that it is not about the default one.
        query = (
            _OF_TENANT
            if given.keys() == {"tenant"} and conditions.tenant
            else _PAGES[tuple(value is not None for value in conditions)]
        )
        place = {"at": before.at, "place": before.position, "since": since, "limit": limit}
        rows = self._access.rows(query, {**place, **given})
        found = [(_ENTRY.record(row[:-1]), int(row[-1])) for row in rows]
        return [(AuditPlace(entry.at, position), entry) for entry, position in found]

    def remove_old(self, *, before: datetime, limit: int) -> int:
        removed = self._access.connection.execute(_REMOVE, {"at": before, "limit": limit})
        return len(list(removed))
