"""A session with thousands of open tasks: a command reads few of them, and the turns go by age."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TypeVar

import pytest

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.dispatch_rules import DispatchPace
from llama_deploy.control_plane.decisions.transitions import Transition
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.types import SessionPolicy, TaskStatus
from llama_deploy.types.topics import Topics

T = TypeVar("T")
COUNT = 3000
READS = Reads(sessions={"s1"})


def name(number: int) -> str:
    return f"t{number:04}"


def fill(tx: StoreTransaction) -> None:
    tx.sessions.insert([a_session("s1")])
    first = a_task(name(0), status=TaskStatus.QUEUED, attempt=1)
    tx.tasks.insert([first, *(a_task(name(number)) for number in range(1, COUNT))])


@pytest.fixture
async def store() -> AsyncIterator[SQLiteStateStore]:
    async with await SQLiteStateStore.connect("sqlite:///:memory:") as store:
        await store.transact(fill)
        yield store


async def run(store: SQLiteStateStore, work: Callable[[Unit], T], reads: Reads = READS) -> T:
    writer = Writer(
        store,
        clock=lambda: NOW,
        topics=Topics("test"),
        pace=DispatchPace(unclaimed=Backoff(10, longest=60), lost=Backoff(1, longest=60)),
        after_commit=lambda _: None,
    )
    try:
        return await writer.write(Command(work, reads))
    finally:
        await writer.close()


def cancel(unit: Unit, task_id: str) -> None:
    unit.apply(lifecycle.cancel(unit.tasks.get(task_id), at=unit.now))


async def queued(store: SQLiteStateStore) -> list[str]:
    return [task.task_id for task in await store.read(lambda tx: tx.tasks.queued(limit=COUNT))]


async def test_a_command_reads_few_of_the_open_tasks(store: SQLiteStateStore) -> None:
    found = await run(store, lambda unit: unit.tasks.oldest_open_of("s1"))
    assert found[0].task_id == name(0)
    assert len(found) < 100
    every = await run(store, lambda unit: unit.tasks.open_of("s1"))
    assert [task.task_id for task in every] == [name(number) for number in range(COUNT)]


@pytest.mark.parametrize("ends", [1, 31, 32, 33, 400])
async def test_many_may_end_in_one_transaction_and_the_oldest_is_next(
    store: SQLiteStateStore, ends: int
) -> None:
    ids = [name(number) for number in range(ends)]
    reads = Reads.of_tasks(*ids, may_end=True)

    def work(unit: Unit) -> None:
        for task_id in ids:
            cancel(unit, task_id)

    await run(store, work, reads)
    assert await queued(store) == [name(ends)]


async def test_one_that_ends_before_its_turn_changes_nothing_for_the_others(store: SQLiteStateStore) -> None:
    far = name(COUNT - 1)
    await run(store, lambda unit: cancel(unit, far), Reads.of_tasks(far, may_end=True))
    assert await queued(store) == [name(0)]


async def test_a_new_task_is_the_last_one(store: SQLiteStateStore) -> None:
    def work(unit: Unit) -> list[str]:
        unit.add_task(Transition(a_task("new")))
        for number in range(40):
            cancel(unit, name(number))
        return [task.task_id for task in unit.tasks.open_of("s1")]

    ids = [name(number) for number in range(40)]
    found = await run(store, work, READS | Reads.of_tasks("new", *ids, may_end=True))
    assert found == [*(name(number) for number in range(40, COUNT)), "new"]
    assert await queued(store) == [name(40)]


async def test_an_event_for_a_task_far_behind_does_not_move_it_forward(store: SQLiteStateStore) -> None:
    far, ids = name(COUNT - 1), [name(number) for number in range(40)]

    def work(unit: Unit) -> None:
        unit.apply(Transition(unit.tasks.get(far)._replace(inbox_length=1)))
        for task_id in ids:
            cancel(unit, task_id)

    await run(store, work, Reads.of_tasks(far, *ids, may_end=True))
    assert await queued(store) == [name(40)]


def park(unit: Unit, task_id: str) -> None:
    task = unit.tasks.get(task_id)
    unit.apply(Transition(task._replace(status=TaskStatus.WAITING)))


@pytest.mark.parametrize("policy", [SessionPolicy.ENQUEUE, SessionPolicy.PARALLEL_WHILE_WAITING])
@pytest.mark.parametrize("waiting", [1, 31, 32, 33, 400])
async def test_the_oldest_that_does_not_wait_is_next_if_the_policy_lets_it_pass(
    store: SQLiteStateStore, policy: SessionPolicy, waiting: int
) -> None:
    def change(tx: StoreTransaction) -> None:
        tx.sessions.update([a_session("s1")._replace(policy=policy)])

    await store.transact(change)
    for number in range(waiting):
        parked = partial(park, task_id=name(number))
        await run(store, parked, Reads.of_tasks(name(number), may_end=True))
    assert await queued(store) == ([] if policy is SessionPolicy.ENQUEUE else [name(waiting)])
