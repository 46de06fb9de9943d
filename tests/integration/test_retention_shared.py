"""Retention by several control planes on one PostgreSQL, and by one that is killed at any moment."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.errors import TaskRemovedError
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.postgresql import PostgreSQLStateStore
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.records import a_session
from llama_deploy.testing.state_store_suite.retention_cases import ended_task, fill_tables, rows_of
from llama_deploy.types import ServiceDefinition, TaskSubmission
from llama_deploy.types.retention import PurgeRequest
from tests.integration.test_retention import Clock, storage_of

COUNT = 600
NAMES = [f"t{n:04}" for n in range(COUNT)]
KILLS = 5


def fill(tx: StoreTransaction) -> None:
    tx.sessions.insert([a_session(f"s{n}") for n in range(10)])
    tx.tasks.insert(
        [ended_task(name, session_id=f"s{n % 10}", stream_length=3) for n, name in enumerate(NAMES)]
    )
    fill_tables(tx, *NAMES, rows=3)


@pytest.fixture
async def stores(postgresql_uri: str) -> AsyncIterator[list[StateStore]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(await PostgreSQLStateStore.connect(postgresql_uri))
            for _ in range(3)
        ]


async def test_several_control_planes_remove_each_task_once(stores: list[StateStore]) -> None:
    await stores[0].transact(fill)
    storages = [storage_of(store, Clock()) for store in stores]
    for storage in storages:
        storage.retention.pace.tasks = 50
    counts = [0, 0, 0]

    async def sweep(index: int) -> None:
        while await stores[index].read(lambda tx: bool(tx.tasks.load(NAMES))):
            counts[index] += await storages[index].retention.sweep()
            await asyncio.sleep(0)

    await asyncio.gather(*map(sweep, range(3)))
    assert sum(counts) == COUNT
    left = await stores[0].read(lambda tx: len(tx.retention.removed(NAMES)))
    assert left == COUNT


async def test_a_task_in_a_session_that_is_locked_is_passed_over(stores: list[StateStore]) -> None:
    await stores[0].transact(fill)
    locked, go_on = asyncio.Event(), asyncio.Event()

    def hold(tx: StoreTransaction) -> None:
        from sqlalchemy.util import await_only  # noqa: PLC0415

        tx.lock(session_ids=["s3"])
        locked.set()
        await_only(go_on.wait())

    holding = asyncio.create_task(stores[1].transact(hold))
    await locked.wait()
    # A transaction that is idle for 2 s is ended by the server.
    removed = await stores[0].transact(
        lambda tx: len(tx.lock_free(NAMES)),
    )
    go_on.set()
    await holding
    assert removed == COUNT - COUNT // 10


async def test_another_control_plane_knows_at_once_that_tasks_were_removed(stores: list[StateStore]) -> None:
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(await LocalMessageQueue.start())
        servers = [
            await stack.enter_async_context(
                ControlPlaneServer(queue, state_store=store, config=ControlPlaneConfig(port=0))
            )
            for store in stores[:2]
        ]
        one, other = (server.plane for server in servers)
        await one.services.register(ServiceDefinition(service_name="s", instance_id="i"))
        submission = TaskSubmission(service_name="s", task_id="once")
        await one.tasks.submit(submission)
        await one.tasks.cancel("once")
        await other.tasks.submit(submission)  # it is there
        await other._removals.look(stores[1])
        assert not other._removals.exist
        assert (await one.storage.purge(PurgeRequest(older_than_seconds=0))).removed == 1
        await eventually(lambda: other._removals.exist)
        with pytest.raises(TaskRemovedError):
            await other.tasks.submit(submission)


SWEEPER = """
import asyncio, sys
from llama_deploy.control_plane.maintenance.batch_pace import ONE_WRITER, BatchPace
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from tests.integration.test_retention import Clock, storage_of

class SteadyPace(BatchPace):
    def adapt(self, *, working, waiting):
        pass  # larger transactions would remove everything before the last kill

async def main():
    async with await SQLiteStateStore.connect(sys.argv[1]) as store:
        storage = storage_of(store, Clock())
        storage.retention.pace = SteadyPace(ONE_WRITER, tasks=5)
        transact = store.transact
        async def asked(work, *, synced=True):
            print("before a transaction", flush=True)
            sys.stdin.readline()
            return await transact(work, synced=synced)
        store.transact = asked
        await storage.retention.sweep()
        print("done", flush=True)

asyncio.run(main())
"""


async def test_a_sweep_that_is_killed_leaves_whole_tasks_and_goes_on(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/state.db"
    async with await SQLiteStateStore.connect(uri) as store:
        await store.transact(fill)

    def look(tx: StoreTransaction) -> tuple[list[list[int]], int]:
        removed = tx.retention.removed(NAMES)
        kept = [rows_of(tx, name) for name in NAMES if name not in removed]
        gone = [rows_of(tx, name) for name in removed]
        assert all(rows == [0, 0, 0, 0, 0] for rows in gone)
        return kept, len(gone)

    counts = [0]
    for _ in range(KILLS):
        await asyncio.to_thread(kill_a_sweep, uri, random.randint(3, 6))  # noqa: S311
        async with await SQLiteStateStore.connect(uri) as store:
            kept, gone = await store.read(look)
        assert all(rows in ([1, 3, 3, 3, 1], [1, 1, 3, 3, 1]) for rows in kept)
        counts.append(gone)
    assert counts == sorted(counts)
    assert any(0 < count < COUNT for count in counts), "no sweep was killed in its middle"
    async with await SQLiteStateStore.connect(uri) as store:
        await storage_of(store, Clock()).retention.sweep()
        assert (await store.read(look)) == ([], COUNT)


def kill_a_sweep(uri: str, transaction: int) -> None:
    """Kill a process that removes tasks in one of its transactions, the one of this number, at any moment."""
    command = [sys.executable, "-c", SWEEPER, uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(transaction):
            assert process.stdout.readline() == "before a transaction\n"
            process.stdin.write("begin\n")
            process.stdin.flush()
        time.sleep(random.uniform(0, 0.005))  # noqa: S311
        process.send_signal(signal.SIGKILL)
