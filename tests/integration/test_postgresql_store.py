from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only

from llama_deploy.errors import (
    ConfigError,
    ConflictError,
    LlamaDeployError,
    SerializationError,
    UnavailableError,
)
from llama_deploy.state_stores import postgresql
from llama_deploy.state_stores.base import Notice, StoreTransaction
from llama_deploy.state_stores.migrations import SCHEMA_REVISION
from llama_deploy.state_stores.postgresql import PostgreSQLStateStore
from llama_deploy.state_stores.records import OutboxRecord
from llama_deploy.state_stores.sql.tables import metadata
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.processes import free_port
from llama_deploy.testing.records import NOW, a_session, a_task, an_instance
from llama_deploy.types import TaskStatus
from tests.servers.postgresql import PostgreSQLServer

PATIENCE_SECONDS = 20.0


@pytest.fixture
async def stores(postgresql_uri: str) -> AsyncIterator[list[PostgreSQLStateStore]]:
    """Return the stores of two control planes."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(await PostgreSQLStateStore.connect(postgresql_uri))
            for _ in range(2)
        ]


@pytest.fixture
def store(stores: list[PostgreSQLStateStore]) -> PostgreSQLStateStore:
    return stores[0]


def statement(tx: StoreTransaction, text: str) -> Any:
    assert isinstance(tx, postgresql._Transaction)
    return tx._connection.execute(sa.text(text), {})


class Step:
    """Two transactions that meet: one goes on when the other says so."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    def wait(self) -> None:
        await_only(asyncio.wait_for(self.reached.wait(), PATIENCE_SECONDS))


# -- the schema


@pytest.mark.usefixtures("store")
async def test_the_migrations_lead_to_the_tables(postgresql_uri: str) -> None:
    def differences(connection: sa.Connection) -> Any:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, metadata)

    engine = create_async_engine(sa.make_url(postgresql_uri).set(drivername="postgresql+asyncpg"))
    try:
        async with engine.connect() as connection:
            found = await connection.run_sync(differences)
    finally:
        await engine.dispose()
    assert found == []


async def test_many_control_planes_start_on_an_empty_database_at_once(postgresql_uri: str) -> None:
    assert await PostgreSQLStateStore.schema_revision(postgresql_uri) is None
    opened = await asyncio.gather(*(PostgreSQLStateStore.connect(postgresql_uri) for _ in range(5)))
    assert await PostgreSQLStateStore.schema_revision(postgresql_uri) == SCHEMA_REVISION
    for store in opened:
        assert await store.read(lambda tx: tx.sessions.page()) == []
        await store.close()


async def test_many_processes_start_on_an_empty_database_at_once(postgresql_uri: str) -> None:
    program = (
        "import asyncio, sys\n"
        "from llama_deploy.state_stores.postgresql import PostgreSQLStateStore\n"
        "async def main():\n"
        "    await (await PostgreSQLStateStore.connect(sys.argv[1])).close()\n"
        "asyncio.run(main())\n"
    )
    processes = await asyncio.gather(
        *(asyncio.create_subprocess_exec(sys.executable, "-c", program, postgresql_uri) for _ in range(4))
    )
    ended = await asyncio.gather(*(process.wait() for process in processes))
    assert ended == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("revision", "words"), [("0003", "before the first release"), ("9999", "newer release")]
)
async def test_the_schema_of_another_version_is_refused(
    store: PostgreSQLStateStore, postgresql_uri: str, revision: str, words: str
) -> None:
    change = f"UPDATE alembic_version SET version_num = '{revision}'"  # noqa: S608 - from this test
    await store.transact(lambda tx: statement(tx, change))
    with pytest.raises(ConfigError) as refused:
        await PostgreSQLStateStore.connect(postgresql_uri)
    name = sa.make_url(postgresql_uri).database
    for fact in (words, revision, f"/{name}", "set state_store_uri"):
        assert fact in str(refused.value)


async def test_tables_without_a_schema_revision_are_refused(
    store: PostgreSQLStateStore, postgresql_uri: str
) -> None:
    await store.transact(lambda tx: statement(tx, "DROP TABLE alembic_version"))
    with pytest.raises(ConfigError, match=r"has the tables .*events,.*not a state store"):
        await PostgreSQLStateStore.connect(postgresql_uri)


async def test_an_upgrade_may_pause_for_longer_than_other_work(postgresql_uri: str) -> None:
    program = (
        "import asyncio, sys, time\n"
        "from importlib.abc import MetaPathFinder\n"
        "from llama_deploy.state_stores.postgresql import PostgreSQLStateStore\n"
        "class Slow(MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'alembic':\n"
        "            time.sleep(3.0)\n"
        "async def main():\n"
        "    await (await PostgreSQLStateStore.connect(sys.argv[1])).close()\n"
        "sys.meta_path.insert(0, Slow())\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, postgresql_uri)
    assert await process.wait() == 0
    assert await PostgreSQLStateStore.schema_revision(postgresql_uri) == SCHEMA_REVISION


# -- two control planes


async def test_one_session_is_decided_on_by_one_at_a_time(stores: list[PostgreSQLStateStore]) -> None:
    first, second = stores
    await first.transact(lambda tx: (tx.sessions.insert([a_session()]), tx.tasks.insert([a_task()])))
    locked, waiting = Step(), Step()

    def decide(tx: StoreTransaction) -> None:
        tx.lock(task_ids=["t1"])
        locked.reached.set()
        waiting.wait()
        assert tx.lock_free(["t1"]) == {"t1"}  # its own locks are in nobody's way
        tx.tasks.insert([a_task("t2")])

    deciding = asyncio.create_task(first.transact(decide))
    await locked.reached.wait()
    assert await second.transact(lambda tx: tx.lock_free(["t1", "unknown"])) == set()

    def look(tx: StoreTransaction) -> int:
        tx.lock(session_ids=["s1"], task_ids=["t1"])
        return len(tx.tasks.of_sessions(["s1"], open_only=True))

    looking = asyncio.create_task(second.transact(look))
    done, _ = await asyncio.wait([looking], timeout=0.2)
    assert not done
    waiting.reached.set()
    await deciding
    assert await looking == 2


async def test_an_instance_stands_for_the_tasks_that_it_runs(stores: list[PostgreSQLStateStore]) -> None:
    first, second = stores
    task = a_task(status=TaskStatus.RUNNING, instance_id="i1")
    await first.transact(
        lambda tx: (
            tx.sessions.insert([a_session()]),
            tx.tasks.insert([task]),
            tx.instances.put([an_instance()]),
        )
    )
    locked, go_on = Step(), Step()

    def expire(tx: StoreTransaction) -> None:
        tx.lock(instance_ids=["i1"])
        locked.reached.set()
        go_on.wait()

    expiring = asyncio.create_task(first.transact(expire))
    await locked.reached.wait()
    assert await second.transact(lambda tx: tx.lock_free(["t1"])) == set()
    go_on.reached.set()
    await expiring
    assert await second.transact(lambda tx: tx.lock_free(["t1"])) == {"t1"}


async def test_transactions_that_wait_in_a_circle_both_end(
    stores: list[PostgreSQLStateStore], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, postgresql.__name__)
    await stores[0].transact(lambda tx: tx.sessions.insert([a_session("a"), a_session("b")]))
    have = {"a": Step(), "b": Step()}

    def crossing(mine: str, other: str) -> Any:
        def work(tx: StoreTransaction) -> None:
            (session,) = tx.sessions.load([mine]).values()
            have[mine].reached.set()
            have[other].wait()
            (wanted,) = tx.sessions.load([other]).values()
            tx.sessions.update([each._replace(version=each.version + 1) for each in (session, wanted)])

        return work

    await asyncio.gather(stores[0].transact(crossing("a", "b")), stores[1].transact(crossing("b", "a")))
    sessions = await stores[0].read(lambda tx: tx.sessions.load(["a", "b"]))
    assert {session.version for session in sessions.values()} == {2}
    assert "deadlock detected" in caplog.text


async def test_a_key_that_another_stores_at_the_same_time_is_a_conflict(
    stores: list[PostgreSQLStateStore],
) -> None:
    outcomes = await asyncio.gather(
        *(each.transact(lambda tx: tx.tasks.insert([a_task()])) for each in stores * 5),
        return_exceptions=True,
    )
    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 9


async def test_messages_are_taken_over_by_one(stores: list[PostgreSQLStateStore]) -> None:
    messages = [OutboxRecord(f"m{n}", "topic", "{}", NOW) for n in range(100)]
    await stores[0].transact(lambda tx: tx.outbox.insert(messages))
    locked, go_on = Step(), Step()

    def take(tx: StoreTransaction) -> list[OutboxRecord]:
        taken = tx.outbox.take(now=NOW, until=NOW + timedelta(seconds=1), limit=60)
        locked.reached.set()
        go_on.wait()
        return taken

    taking = asyncio.create_task(stores[0].transact(take))
    await locked.reached.wait()
    others = await stores[1].transact(lambda tx: tx.outbox.take(now=NOW, until=NOW, limit=60))
    go_on.reached.set()
    assert [item.message_id for item in [*(await taking), *others]] == [f"m{n}" for n in range(100)]


# -- notices


async def test_notices_come_to_the_others_after_the_commit(stores: list[PostgreSQLStateStore]) -> None:
    first, second = stores
    assert not await first.has_company()
    async with aclosing(second.notices()) as here, aclosing(first.notices()) as own:
        assert await anext(here) == await anext(own) == Notice(everything=True)
        assert await first.has_company()
        notice = Notice(frozenset({"t1", "t2"}), due=NOW)
        committed, waiting = False, asyncio.ensure_future(anext(here))

        def work(tx: StoreTransaction) -> None:
            tx.notify(notice)
            await_only(asyncio.sleep(0.1))
            assert not waiting.done()
            nonlocal committed
            committed = True

        await first.transact(work)
        assert await asyncio.wait_for(waiting, PATIENCE_SECONDS) == notice
        assert committed

        def fail(tx: StoreTransaction) -> None:
            tx.notify(Notice(frozenset({"never"})))
            raise LookupError

        with pytest.raises(LookupError):
            await first.transact(fail)
        many = frozenset(f"task-{n:060}" for n in range(300))
        await first.transact(lambda tx: tx.notify(Notice(many)))
        seen: frozenset[str] = frozenset()
        while len(seen) < len(many):
            seen |= (await asyncio.wait_for(anext(here), PATIENCE_SECONDS)).task_ids
        assert seen == many
        await second.transact(lambda tx: tx.notify(Notice(frozenset({"from the second"}))))
        # What the first has told did not come to itself.
        assert await asyncio.wait_for(anext(own), PATIENCE_SECONDS) == Notice(frozenset({"from the second"}))


async def test_a_lost_connection_for_notices_is_told_and_made_again(
    stores: list[PostgreSQLStateStore],
) -> None:
    first, second = stores
    async with aclosing(second.notices()) as here:
        assert (await anext(here)).everything
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        await first.transact(lambda tx: statement(tx, cut))
        seen: list[Notice] = []
        while not any(notice.everything for notice in seen):
            seen.append(await asyncio.wait_for(anext(here), PATIENCE_SECONDS))
        assert any(notice.lost for notice in seen)
        await first.transact(lambda tx: tx.notify(Notice(frozenset({"t1"}))))
        assert await asyncio.wait_for(anext(here), PATIENCE_SECONDS) == Notice(frozenset({"t1"}))


async def test_closing_the_store_ends_its_notices(store: PostgreSQLStateStore) -> None:
    async with aclosing(store.notices()) as notices:
        assert (await anext(notices)).everything
        ending = asyncio.ensure_future(anext(notices, None))
        await asyncio.sleep(0)  # let it wait
        await store.close()
        assert await asyncio.wait_for(ending, PATIENCE_SECONDS) is None


# -- loss of the connection


async def test_work_whose_connection_is_lost_before_the_commit_is_run_again(
    stores: list[PostgreSQLStateStore],
) -> None:
    first, second = stores
    runs = 0

    def work(tx: StoreTransaction) -> None:
        nonlocal runs
        runs += 1
        tx.sessions.insert([a_session()])
        if runs == 1:
            pid = statement(tx, "SELECT pg_backend_pid()").scalar()
            await_only(second.transact(lambda other: statement(other, f"SELECT pg_terminate_backend({pid})")))
        tx.tasks.insert([a_task()])

    await first.transact(work)
    assert runs == 2
    assert await second.read(lambda tx: (tx.sessions.page(), set(tx.tasks.load(["t1"])))) == (
        [a_session()],
        {"t1"},
    )


async def test_a_server_that_is_away_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="does not answer") as refused:
        await PostgreSQLStateStore.connect(f"postgresql://me:hush@127.0.0.1:{free_port()}/db")
    assert "hush" not in str(refused.value)


async def test_a_server_that_writes_no_more_is_left_for_the_one_that_does(
    store: PostgreSQLStateStore,
    postgresql_server: PostgreSQLServer,
    postgresql_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgresql, "_PING_SECONDS", 0.1)
    database = sa.make_url(postgresql_uri).database
    # For new connections only, as if others led to another server.
    postgresql_server.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    async with (
        await PostgreSQLStateStore.connect(postgresql_uri) as late,
        aclosing(late.notices()) as notices,
    ):
        assert await late.read(lambda tx: tx.sessions.page()) == []
        assert await anext(notices) == Notice(everything=True)
        postgresql_server.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")
        await late.transact(lambda tx: tx.sessions.insert([a_session()]))
        assert await store.read(lambda tx: tx.sessions.page()) == [a_session()]
        assert (await asyncio.wait_for(anext(notices), PATIENCE_SECONDS)).lost


# -- what is stored, and how


async def test_a_commit_that_need_not_be_synced_does_not_wait(store: PostgreSQLStateStore) -> None:
    def level(tx: StoreTransaction) -> object:
        return statement(tx, "SHOW synchronous_commit").scalar()

    assert await store.transact(level) == "on"
    assert await store.transact(level, synced=False) == "off"
    assert await store.transact(level) == "on"


async def test_reading_work_cannot_write(store: PostgreSQLStateStore) -> None:
    with pytest.raises(UnavailableError, match="read-only"):
        await store.read(lambda tx: tx.sessions.insert([a_session()]))
    await store.transact(lambda tx: tx.sessions.insert([a_session()]))


@pytest.mark.parametrize("text", ["\0", "\ud800"])
async def test_text_that_it_cannot_hold_is_refused_for_good(store: PostgreSQLStateStore, text: str) -> None:
    with pytest.raises(SerializationError, match="PostgreSQL cannot store"):
        await store.transact(lambda tx: tx.sessions.insert([a_session(text)]))
    await store.transact(lambda tx: tx.sessions.insert([a_session()]))


# -- addresses


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql+psycopg://me:hush@host/db",
        "postgresql://me:hush@host:port/db",
        "postgresql://me:hush@host/db?passfile=x",
        "sqlite:///hush.db",
    ],
)
async def test_an_address_that_cannot_work_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="postgresql://user:password@host") as refused:
        await PostgreSQLStateStore.connect(uri)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
async def test_the_registry_opens_by_scheme(postgresql_uri: str, scheme: str) -> None:
    uri = postgresql_uri.replace("postgresql", scheme, 1)
    async with await open_state_store(uri) as store:
        assert isinstance(store, PostgreSQLStateStore)


async def test_a_database_that_is_not_there_is_a_wrong_setting(postgresql_server: PostgreSQLServer) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        await PostgreSQLStateStore.connect(postgresql_server.uri("nowhere"))


async def test_the_password_is_never_shown(
    store: PostgreSQLStateStore, postgresql_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert "secret" in str(sa.make_url(postgresql_uri).password)
    # Its parts are the engine and the address.
    for shown in (repr(store), repr(vars(store))):
        assert "secret" not in shown
    caplog.set_level(logging.DEBUG)
    secret_input = a_task()._replace(input='{"token": "secret"}', token="secret")
    errors: list[BaseException | None] = []
    for _ in range(2):
        try:
            await store.transact(lambda tx: tx.tasks.insert([secret_input]))
        except LlamaDeployError as exc:
            errors += [exc, exc.__cause__]
    assert len(errors) == 2
    assert not [error for error in errors if "secret" in str(error)]
    assert "secret" not in caplog.text
