"""The audit log."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import pytest

from llama_deploy.state_stores.audit_repository import AuditConditions, AuditPlace, AuditRecord
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.testing.records import NOW
from llama_deploy.testing.state_store_suite.base import StoreTests

_SECOND: Final = timedelta(seconds=1)
_END: Final = AuditPlace(NOW + timedelta(days=1), 0)
_BEGIN: Final = NOW - timedelta(days=1)
_ALL: Final = AuditConditions()


def an_entry(target: str = "t1", **changes: Any) -> AuditRecord:
    """Return an entry to store, with any other field in `changes`."""
    entry = AuditRecord(
        at=NOW,
        action="task.cancel",
        target=target,
        tenant="",
        outcome="done",
        subject="zoë",
        home="",
    )
    return entry._replace(**changes)


async def targets(store: StateStore, conditions: AuditConditions = _ALL, **page: Any) -> list[str]:
    """Return the targets of a page of the log."""
    options = {"since": _BEGIN, "before": _END, "limit": 100, **page}
    found = await store.read(lambda tx: tx.audit.page(conditions, **options))
    return [entry.target for _, entry in found]


class AuditTests(StoreTests):
    """A store keeps the audit log."""

    async def test_entries_come_back_as_they_were_stored_the_newest_first(self, store: StateStore) -> None:
        full = an_entry(
            "t2",
            at=NOW + _SECOND,
            tenant="acme",
            home="acme",
            key_id="k1",
            acting_for="ann",
            address="192.0.2.1",
            details='{"from": "start"}',
        )
        await store.transact(lambda tx: tx.audit.append([an_entry(), full]))
        found = await store.read(
            lambda tx: tx.audit.page(AuditConditions(), since=_BEGIN, before=_END, limit=9)
        )
        assert [entry for _, entry in found] == [full, an_entry()]

    async def test_pages_of_the_log_follow_each_other_without_gaps(self, store: StateStore) -> None:
        """Entries of one transaction have the same time."""
        await store.transact(lambda tx: tx.audit.append([an_entry(f"t{n}") for n in range(5)]))
        before, seen = _END, list[str]()
        for _ in range(3):
            page = await store.read(
                lambda tx, place=before: tx.audit.page(  # type: ignore[misc]
                    AuditConditions(), since=_BEGIN, before=place, limit=2
                )
            )
            seen += [entry.target for _, entry in page]
            before = page[-1][0]
        assert seen == ["t4", "t3", "t2", "t1", "t0"]

    async def test_the_log_is_read_by_target_subject_tenant_and_time(self, store: StateStore) -> None:
        entries = [
            an_entry("t1"),
            an_entry("t1", tenant="acme", subject="ann", at=NOW + _SECOND),
            an_entry("t2", tenant="acme", at=NOW + 2 * _SECOND),
        ]
        await store.transact(lambda tx: tx.audit.append(entries))
        assert await targets(store, AuditConditions(target="t1")) == ["t1", "t1"]
        assert await targets(store, AuditConditions(target="t1", tenant="")) == ["t1"]
        assert await targets(store, AuditConditions(tenant="acme")) == ["t2", "t1"]
        assert await targets(store, AuditConditions(tenant="")) == ["t1"]
        assert await targets(store, AuditConditions(subject="ann")) == ["t1"]
        assert await targets(store, AuditConditions(subject="ann", tenant="other")) == []
        assert await targets(store, since=NOW + 2 * _SECOND) == ["t2"]
        assert await targets(store, before=AuditPlace(NOW + _SECOND, 0)) == ["t1"]

    async def test_the_oldest_entries_are_removed(self, store: StateStore) -> None:
        await store.transact(
            lambda tx: tx.audit.append([an_entry(f"t{n}", at=NOW + n * _SECOND) for n in range(4)])
        )
        cutoff = NOW + 3 * _SECOND
        assert await store.transact(lambda tx: tx.audit.remove_old(before=cutoff, limit=2)) == 2
        assert await targets(store) == ["t3", "t2"]
        assert await store.transact(lambda tx: tx.audit.remove_old(before=cutoff, limit=2)) == 1
        assert await store.transact(lambda tx: tx.audit.remove_old(before=cutoff, limit=2)) == 0
        assert await targets(store) == ["t3"]

    async def test_an_entry_of_a_transaction_that_fails_does_not_exist(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.audit.append([an_entry()])
            raise RuntimeError("after the entry")

        with pytest.raises(RuntimeError, match="after the entry"):
            await store.transact(work)
        assert await targets(store) == []
