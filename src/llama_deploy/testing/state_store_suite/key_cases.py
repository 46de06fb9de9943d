"""API keys."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llama_deploy.errors import ConflictError
from llama_deploy.state_stores.api_key_repository import ApiKeyRecord
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.testing.records import NOW
from llama_deploy.testing.state_store_suite.base import StoreTests

_SECOND = timedelta(seconds=1)


def a_key(key_id: str = "k1", **changes: Any) -> ApiKeyRecord:
    """Return a key to store, with any other field in `changes`."""
    key = ApiKeyRecord(
        key_id=key_id,
        secret_hash="00",  # noqa: S106 - none
        name="Zoë",
        scopes='["admin"]',
        created_at=NOW,
        created_by="ann",
    )
    return key._replace(**changes)


class ApiKeyTests(StoreTests):
    """A store keeps API keys, and has a clock for them."""

    async def test_keys_come_back_as_they_were_stored(self, store: StateStore) -> None:
        full = a_key("k2", expires_at=NOW + _SECOND, revoked_at=NOW + 2 * _SECOND, tenant="t")

        def work(tx: StoreTransaction) -> None:
            tx.api_keys.insert(a_key())
            tx.api_keys.insert(full)

        await store.transact(work)
        assert await store.read(lambda tx: tx.api_keys.find("k1")) == a_key()
        assert await store.read(lambda tx: tx.api_keys.find("k2")) == full
        assert await store.read(lambda tx: tx.api_keys.find("k3")) is None
        assert await store.read(lambda tx: tx.api_keys.count()) == 2
        with pytest.raises(ConflictError):
            await store.transact(lambda tx: tx.api_keys.insert(a_key()))

    async def test_a_key_is_revoked_once(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.api_keys.insert(a_key()))
        await store.transact(lambda tx: tx.api_keys.revoke("k1", at=NOW + _SECOND))
        await store.transact(lambda tx: tx.api_keys.revoke("k1", at=NOW + 2 * _SECOND))
        await store.transact(lambda tx: tx.api_keys.revoke("nothing", at=NOW))
        assert await store.read(lambda tx: tx.api_keys.find("k1")) == a_key(revoked_at=NOW + _SECOND)

    async def test_keys_are_listed_newest_first(self, store: StateStore) -> None:
        ids = ["a", "c", "b"]

        def work(tx: StoreTransaction) -> None:
            for key_id in ids:
                tx.api_keys.insert(a_key(key_id))
            tx.api_keys.insert(a_key("new", created_at=NOW + _SECOND))

        await store.transact(work)

        async def listed(before: tuple[datetime, str] | None, limit: int) -> list[str]:
            found = await store.read(lambda tx: tx.api_keys.page(before=before, limit=limit))
            return [key.key_id for key in found]

        assert await listed(None, 10) == ["new", "c", "b", "a"]
        assert await listed(None, 2) == ["new", "c"]
        assert await listed((NOW, "c"), 10) == ["b", "a"]
        assert await listed((NOW + _SECOND, "new"), 1) == ["c"]

    async def test_ended_keys_are_deleted_and_others_are_not(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.api_keys.insert(a_key("valid"))
            tx.api_keys.insert(a_key("later", expires_at=NOW))
            tx.api_keys.insert(a_key("expired", expires_at=NOW - _SECOND))
            tx.api_keys.insert(a_key("revoked", revoked_at=NOW - _SECOND))
            tx.api_keys.delete_ended(before=NOW)
            tx.api_keys.delete_ended(before=NOW - _SECOND)

        await store.transact(work)
        found = await store.read(lambda tx: tx.api_keys.page())
        assert {key.key_id for key in found} == {"valid", "later"}

    async def test_the_clock_is_right(self, store: StateStore) -> None:
        before = datetime.now(UTC)
        now = await store.read(lambda tx: tx.api_keys.now())
        assert before - _SECOND <= now <= datetime.now(UTC) + _SECOND
        assert now.tzinfo is not None
