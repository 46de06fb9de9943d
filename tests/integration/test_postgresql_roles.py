"""What a role of PostgreSQL may do, and in which schema."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from llama_deploy.errors import ConfigError
from llama_deploy.state_stores import postgresql_opening
from llama_deploy.state_stores.base import Notice
from llama_deploy.state_stores.migrations import SCHEMA_REVISION
from llama_deploy.state_stores.postgresql import PostgreSQLStateStore
from llama_deploy.state_stores.records import OutboxRecord
from llama_deploy.testing.records import NOW, a_session, a_task
from tests.servers.postgresql import PostgreSQLServer

PATIENCE_SECONDS: Final = 20.0


class Roles:
    """Roles of one database."""

    def __init__(self, server: PostgreSQLServer, uri: str) -> None:
        self._server = server
        self._url = sa.make_url(uri)
        self._names: list[str] = []

    def new(self) -> str:
        """Return the name of a new role, which owns nothing."""
        name = f"role_{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE ROLE {name} LOGIN")
        self._names.append(name)
        return name

    def execute(self, statement: str) -> None:
        self._server.execute(statement, database=str(self._url.database))

    def uri(self, role: str) -> str:
        return self._url.set(username=role, password="hush").render_as_string(hide_password=False)

    def drop(self) -> None:
        for name in self._names:
            self.execute(f"DROP OWNED BY {name} CASCADE")
            self.execute(f"DROP ROLE {name}")


@pytest.fixture
def roles(postgresql_server: PostgreSQLServer, postgresql_uri: str) -> Iterator[Roles]:
    roles = Roles(postgresql_server, postgresql_uri)
    # As it is in every database since PostgreSQL 15.
    roles.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    yield roles
    roles.drop()


async def refusal(uri: str) -> str:
    with pytest.raises(ConfigError) as refused:
        await PostgreSQLStateStore.connect(uri)
    text = str(refused.value)
    assert "hush" not in text
    assert "\n" not in text
    return text


async def works(uri: str) -> bool:
    """Whether a store at `uri` can be opened, written and read."""
    async with await PostgreSQLStateStore.connect(uri) as store:
        await store.check_writable()
        message = OutboxRecord("m1", "topic", "{}", NOW)
        await store.transact(lambda tx: tx.outbox.insert([message]))
        await store.transact(lambda tx: (tx.sessions.insert([a_session()]), tx.tasks.insert([a_task()])))
        return await store.read(lambda tx: tx.sessions.page()) == [a_session()]


async def test_a_role_that_may_not_make_tables_is_told_what_it_needs(roles: Roles) -> None:
    plain = roles.new()
    assert await PostgreSQLStateStore.schema_revision(roles.uri(plain)) is None

    text = await refusal(roles.uri(plain))

    remedy = f"GRANT USAGE, CREATE ON SCHEMA public TO {plain}"
    assert "permission denied for schema public" in text
    assert remedy in text
    roles.execute(remedy)
    assert await works(roles.uri(plain))


async def test_a_role_without_a_schema_is_told_to_make_one(roles: Roles) -> None:
    plain = roles.new()
    roles.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")

    text = await refusal(roles.uri(plain))

    remedy = f"CREATE SCHEMA AUTHORIZATION {plain}"
    assert remedy in text
    roles.execute(remedy)
    assert await works(roles.uri(plain))


async def test_a_role_that_may_not_use_the_tables_is_told_what_it_needs(
    roles: Roles, postgresql_uri: str
) -> None:
    await (await PostgreSQLStateStore.connect(postgresql_uri)).close()
    plain = roles.new()

    text = await refusal(roles.uri(plain))

    remedies = [
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {plain}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {plain}",
    ]
    assert "permission denied for table" in text
    assert text.endswith("; ".join(remedies))
    with pytest.raises(ConfigError, match=remedies[0]):
        await PostgreSQLStateStore.schema_revision(roles.uri(plain))
    for remedy in remedies:
        roles.execute(remedy)
    assert await works(roles.uri(plain))


async def test_a_role_that_may_not_change_the_tables_is_told_who_may(
    roles: Roles, postgresql_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upgrade(connection: sa.Connection, *, name: str) -> None:
        connection.execute(sa.text("ALTER TABLE tasks ADD COLUMN of_a_later_release TEXT"))

    await (await PostgreSQLStateStore.connect(postgresql_uri)).close()
    monkeypatch.setattr(postgresql_opening, "SCHEMA_REVISION", "of a later release")
    monkeypatch.setattr(postgresql_opening, "upgrade_schema", upgrade)
    plain = roles.new()
    roles.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {plain}")
    roles.execute(f"GRANT CREATE ON SCHEMA public TO {plain}")

    text = await refusal(roles.uri(plain))

    assert "must be owner of table" in text
    assert f"the role tester: run llamactl db upgrade as that one, or GRANT tester TO {plain}" in text


async def test_a_role_that_may_not_connect_is_told_what_it_needs(roles: Roles, postgresql_uri: str) -> None:
    roles.execute(f"REVOKE CONNECT ON DATABASE {sa.make_url(postgresql_uri).database} FROM PUBLIC")

    assert "GRANT CONNECT ON DATABASE" in await refusal(roles.uri(roles.new()))


@pytest.mark.parametrize(
    ("mode", "words"), [("foo", "sslmode"), ("verify-full", "root")], ids=["unknown", "no certificate"]
)
async def test_a_way_of_tls_that_cannot_work_is_a_wrong_setting(
    postgresql_uri: str, mode: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=f"cannot be used: .*{words}"):
        await PostgreSQLStateStore.connect(f"{postgresql_uri}?sslmode={mode}")


# -- several state stores in one database


@pytest.fixture
def owners(roles: Roles) -> list[str]:
    """Return the addresses of two systems, each in a schema of its own."""
    names = [roles.new(), roles.new()]
    for name in names:
        roles.execute(f"CREATE SCHEMA AUTHORIZATION {name}")
    return [roles.uri(name) for name in names]


@pytest.fixture
async def neighbours(owners: list[str]) -> AsyncIterator[list[PostgreSQLStateStore]]:
    """Return their stores."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(await PostgreSQLStateStore.connect(uri)) for uri in owners]


async def test_a_system_in_another_schema_is_no_company(neighbours: list[PostgreSQLStateStore]) -> None:
    first, second = neighbours
    async with aclosing(second.notices()) as notices:
        assert await anext(notices) == Notice(everything=True)
        assert not await first.has_company()
        assert await second.has_company()


async def test_notices_stay_within_their_schema(
    neighbours: list[PostgreSQLStateStore], owners: list[str]
) -> None:
    first, second = neighbours
    async with await PostgreSQLStateStore.connect(owners[1]) as peer, aclosing(peer.notices()) as notices:
        assert await anext(notices) == Notice(everything=True)
        await first.transact(lambda tx: tx.notify(Notice(frozenset({"of another system"}))))
        await second.transact(lambda tx: tx.notify(Notice(frozenset({"t1"}))))
        heard = await asyncio.wait_for(anext(notices), PATIENCE_SECONDS)
        assert heard == Notice(frozenset({"t1"}))


async def test_roles_that_share_the_tables_hear_each_other(roles: Roles, postgresql_uri: str) -> None:
    plain = roles.new()
    async with await PostgreSQLStateStore.connect(postgresql_uri) as owner:
        roles.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {plain}")
        # Its first schema is another one, but the tables are not there.
        roles.execute(f"ALTER ROLE {plain} SET search_path TO {plain}, public")
        roles.execute(f"CREATE SCHEMA AUTHORIZATION {plain}")
        async with await PostgreSQLStateStore.connect(roles.uri(plain)) as other:
            assert await PostgreSQLStateStore.schema_revision(roles.uri(plain)) == SCHEMA_REVISION
            async with aclosing(other.notices()) as notices:
                assert await anext(notices) == Notice(everything=True)
                assert await owner.has_company()
                await owner.transact(lambda tx: tx.notify(Notice(frozenset({"t1"}))))
                heard = await asyncio.wait_for(anext(notices), PATIENCE_SECONDS)
                assert heard == Notice(frozenset({"t1"}))
