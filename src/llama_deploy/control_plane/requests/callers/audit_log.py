"""Requests for the audit log, and who is named in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from llama_deploy.control_plane.decisions.cursors import decode_cursor, encode_cursor, time_in_cursor
from llama_deploy.control_plane.requests.callers.denied_requests import DeniedRequests
from llama_deploy.errors import PermissionDeniedError
from llama_deploy.state_stores.audit_repository import AuditConditions, AuditPlace, AuditRecord
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.types.audit import Actor, AuditAction, AuditEntry, AuditFilter, AuditPage, AuditScope
from llama_deploy.types.callers import Caller
from llama_deploy.types.epoch import to_microseconds
from llama_deploy.types.keys import DEFAULT_TENANT

_BEGIN: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(9999, 1, 1, tzinfo=UTC)
_READ: Final = 1000
_MAX_READS: Final = 10
"""How many entries one request looks at: so many reads of so many."""


@dataclass(frozen=True, slots=True)
class AuditLog:
    """The audit log of a store."""

    store: StateStore
    recorded: AuditScope
    """Which requests leave an entry."""
    denied: DeniedRequests
    """Records those that are refused."""

    def actor(self, caller: Caller, address: str | None) -> Actor | None:
        """Return who is named in the entries of a request. None: it leaves none."""
        if self.recorded == "off":
            return None
        by = caller.acted_by
        return Actor(
            subject=caller.subject if by is None else by,
            tenant=caller.tenant if by is None else DEFAULT_TENANT,
            key_id=caller.key_id,
            address=address,
            acting_for=caller.subject if by is not None and caller.is_bound else None,
            token=None if caller.resource is None else caller.resource.kind,
            records_all=self.recorded == "all",
        )

    async def list(
        self,
        wanted: AuditFilter,
        *,
        tenant: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> AuditPage:
        """Return a page of the entries that fulfil all conditions, the newest first.

        Args:
            wanted: The conditions.
            tenant: The only tenant whose entries the caller may see. None: those of all.
            cursor: `next_cursor` of the page before.
            limit: The most entries to return.

        Raises:
            PermissionDeniedError: The caller may not see the tenant of the conditions.
            InvalidCursorError: The cursor belongs to a list with other conditions.
            UnavailableError: The store does not answer.
        """
        if tenant is not None and wanted.tenant not in (None, tenant):
            raise PermissionDeniedError("a key of a tenant lists entries of that tenant only")
        whose = wanted.tenant if tenant is None else tenant
        this = {"list": "audit", **wanted.model_dump(mode="json"), "tenant": whose}
        conditions = AuditConditions(whose, wanted.target, wanted.subject)
        since = max(wanted.after or _BEGIN, _BEGIN)
        place = AuditPlace(wanted.before or _END, 0) if cursor is None else _place(cursor, this)

        def read(tx: StoreTransaction) -> tuple[list[AuditRecord], AuditPlace | None]:
            found: list[AuditRecord] = []
            last = place
            for _ in range(_MAX_READS):
                page = tx.audit.page(conditions, since=since, before=last, limit=_READ)
                for last, entry in page:
                    if _matches(entry, wanted):
                        found.append(entry)
                        if len(found) == limit:
                            return found, last
                if len(page) < _READ:
                    return found, None
            return found, last

        entries, last = await self.store.read(read)
        following = None
        if last is not None:
            following = encode_cursor([to_microseconds(last.at), last.position], of=this)
        return AuditPage(items=[_view(each, to=tenant) for each in entries], next_cursor=following)


def _matches(entry: AuditRecord, wanted: AuditFilter) -> bool:
    """Whether an entry fulfils the conditions that have no index."""
    return (
        (not wanted.action or entry.action in wanted.action)
        and wanted.key in (None, entry.key_id)
        and wanted.outcome in (None, entry.outcome)
    )


def _view(entry: AuditRecord, *, to: str | None) -> AuditEntry:
    """Return an entry as an administrator of a tenant sees it. None: as an operator does."""
    is_shown = to is None or entry.home == to
    action = entry.action
    kind = "request" if action == AuditAction.ACCESS else action.partition(".")[0]
    return AuditEntry(
        at=entry.at,
        action=action,
        kind=kind,
        target=entry.target,
        tenant=entry.tenant,
        outcome=entry.outcome,
        subject=entry.subject,
        key_id=entry.key_id,
        acting_for=entry.acting_for,
        address=entry.address if is_shown else None,
        details={} if entry.details is None else json.loads(entry.details),
    )


def _place(cursor: str, this: Mapping[str, object]) -> AuditPlace:
    at, position = decode_cursor(cursor, of=this, kinds=(int, int))
    return AuditPlace(time_in_cursor(at), int(position))
