"""API keys in SQL."""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from llama_deploy.state_stores.api_key_repository import ApiKeyRecord, ApiKeyRepository
from llama_deploy.state_stores.sql.access import IDS, SQLRepository, ids, limit, pad
from llama_deploy.state_stores.sql.queries import Mapper, Query
from llama_deploy.state_stores.sql.tables import UtcMicroseconds, api_keys
from llama_deploy.types.epoch import from_microseconds

_KEY = Mapper(ApiKeyRecord, api_keys)
_at = sa.bindparam("at", type_=UtcMicroseconds())

_CLOCK = sa.select(sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()) * 1_000_000, sa.BigInteger))
_BY_ID = Query.unlocked(_KEY.where(api_keys.c.key_id == sa.bindparam("key")))
_order = (api_keys.c.created_at.desc(), api_keys.c.key_id.desc())
_is_before = sa.tuple_(api_keys.c.created_at, api_keys.c.key_id) < sa.tuple_(_at, sa.bindparam("key"))
_has_tenant = api_keys.c.tenant == sa.bindparam("tenant")


def _page(*conditions: sa.ColumnElement[bool]) -> Query:
    return Query.unlocked(sa.select(*_KEY.columns).where(*conditions).order_by(*_order).limit(limit))


_PAGES = {
    (has_tenant, has_before): _page(*[_has_tenant] * has_tenant, *[_is_before] * has_before)
    for has_tenant in (False, True)
    for has_before in (False, True)
}
_count = sa.select(sa.func.count()).select_from(api_keys)
_COUNT = Query.unlocked(_count)
_COUNT_OF_TENANT = Query.unlocked(_count.where(_has_tenant))
_INSERT = sa.insert(api_keys)
_REVOKE = (
    sa.update(api_keys)
    .where(api_keys.c.key_id == sa.bindparam("key"), api_keys.c.revoked_at.is_(None))
    .values(revoked_at=_at)
)
_ENDED = Query.unlocked(
    sa.select(api_keys.c.key_id)
    .where(sa.or_(api_keys.c.expires_at < _at, api_keys.c.revoked_at < _at))
    .limit(limit)
)
_DELETE = sa.delete(api_keys).where(api_keys.c.key_id.in_(ids))


class SQLApiKeys(SQLRepository, ApiKeyRepository):
    """API keys in the table `api_keys`."""

    def now(self) -> datetime:
        if self._access.connection.dialect.name == "postgresql":
            ((microseconds,),) = self._access.connection.execute(_CLOCK, {})
            return from_microseconds(int(microseconds))
        return datetime.now(UTC)  # the database is in this process

    def find(self, key_id: str) -> ApiKeyRecord | None:
        return next((_KEY.record(row) for row in self._access.rows(_BY_ID, {"key": key_id})), None)

    def page(
        self,
        *,
        tenant: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[ApiKeyRecord]:
        parameters: dict[str, object] = {"limit": limit}
        if tenant is not None:
            parameters["tenant"] = tenant
        if before is not None:
            parameters["at"], parameters["key"] = before
        rows = self._access.rows(_PAGES[tenant is not None, before is not None], parameters)
        return [_KEY.record(row) for row in rows]

    def count(self, tenant: str | None = None) -> int:
        query = _COUNT if tenant is None else _COUNT_OF_TENANT
        ((count,),) = self._access.rows(query, {} if tenant is None else {"tenant": tenant})
        return int(count)

    def insert(self, key: ApiKeyRecord) -> None:
        self._access.write(_INSERT, _KEY.rows([key]))

    def revoke(self, key_id: str, *, at: datetime) -> None:
        self._access.connection.execute(_REVOKE, {"key": key_id, "at": at})

    def delete_ended(self, *, before: datetime, limit: int = 100) -> None:
        found = [row[0] for row in self._access.rows(_ENDED, {"at": before, "limit": limit})]
        if found:
            self._access.connection.execute(_DELETE, {IDS: pad(found)})
