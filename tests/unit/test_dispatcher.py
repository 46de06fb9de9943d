"""Which attempts are published again, and for which reason."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.decisions.dispatch_rules import DispatchPace
from llama_deploy.control_plane.dispatch.dispatcher import Dispatcher
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Committed
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import (
    InstanceRecord,
    RunHeadRecord,
    ServiceRecord,
    TaskRecord,
    VersionRecord,
)
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.records import NOW, a_session, a_task, an_instance
from llama_deploy.types import TaskStatus
from llama_deploy.types.topics import Topics
from llama_deploy.types.workflow_shape import RunNeeds, StepNeed, StepShape, WorkflowShape

LEASE = timedelta(seconds=5)
MOMENT = timedelta(milliseconds=1)
ASK = RunNeeds(steps={"ask": StepNeed()}).model_dump_json()


def shape(*steps: str) -> str:
    shapes = {name: StepShape(takes=["StartEvent"]) for name in steps}
    whole = WorkflowShape(fingerprint="f", library_version="1", steps=shapes, classes={}, state="s")
    return whole.model_dump_json()


SHAPES = {"v1": shape("ask"), "v2": shape("request")}


def instance(name: str, version: str, **changes: Any) -> InstanceRecord:
    return an_instance(name)._replace(**{"version": version, "slots": 4, "running": 0, **changes})


@dataclass
class System:
    """A dispatcher over a store, and what it has published: the topic of each message."""

    store: SQLiteStateStore
    now: Any = NOW
    topics: list[str] = field(default_factory=list)
    committed: list[Committed] = field(default_factory=list)
    waiting: bool = False

    def __post_init__(self) -> None:
        self.writer = Writer(
            self.store,
            clock=lambda: self.now,
            topics=Topics("ns"),
            pace=DispatchPace(unclaimed=Backoff(15, longest=960), lost=Backoff(1, longest=60)),
            after_commit=self._after_commit,
        )
        self.dispatcher = Dispatcher(
            store=self.store,
            writer=self.writer,
            clock=lambda: self.now,
            lease=LEASE,
            is_waiting=lambda _: self.waiting,
        )

    def _after_commit(self, committed: Committed) -> None:
        self.committed.append(committed)
        self.topics += [item.topic for item in committed.outgoing]

    async def task(self, task_id: str = "t", *, runs: bool = True, **changes: Any) -> TaskRecord:
        """Store a queued task, whose run v1 has begun, that was published once and is due."""
        defaults = {"status": TaskStatus.QUEUED, "dispatches": 1, "redispatch_at": self.now - MOMENT}
        if runs:
            defaults |= {"has_run": True, "version": "v1"}
        task = a_task(task_id)._replace(**{**defaults, **changes})
        await self.store.transact(lambda tx: tx.tasks.insert([task]))
        if runs:
            head = RunHeadRecord(task_id, "f", "1", needs=ASK)
            await self.store.transact(lambda tx: tx.runs.put([head]))
        return task

    async def stored(self, task_id: str = "t") -> TaskRecord:
        return (await self.store.read(lambda tx: tx.tasks.load([task_id])))[task_id]

    async def join(self, *instances: InstanceRecord) -> None:
        """Let instances register, and send what they change elsewhere."""
        for each in instances:
            await self.change(lambda unit, each=each: unit.add_instance(each, shape=SHAPES[each.version]))

    async def leave(self, *instance_ids: str) -> None:
        for each in instance_ids:
            await self.change(lambda unit, each=each: unit.remove_instances([each]))

    async def change(self, run: Any) -> None:
        found = await self.store.read(lambda tx: tx.instances.load())
        ids = {each.instance_id for each in found} | {"a1", "a2", "b1", "b2", "lone"}
        count = len(self.committed)
        await self.writer.write(Command(run, Reads(services={"greeter"}, instances=ids)))
        changes = [each for committed in self.committed[count:] for each in committed.fleets]
        if changes:
            await self.dispatcher.send_elsewhere(changes)

    async def sweep(self) -> list[str]:
        """Publish what is due, and return to which topics."""
        self.topics.clear()
        await self.dispatcher.sweep()
        return self.topics


@pytest.fixture
async def system() -> AsyncIterator[System]:
    def fill(tx: StoreTransaction) -> None:
        tx.sessions.insert([a_session()])
        tx.services.put([ServiceRecord("greeter", "{}")])
        tx.services.put_versions([VersionRecord("greeter", name, text) for name, text in SHAPES.items()])

    async with await SQLiteStateStore.connect("sqlite:///:memory:") as store:
        await store.transact(fill)
        system = System(store)
        yield system
        await system.writer.close()


A1 = instance("a1", "v1")
A2 = instance("a2", "v1")
B1 = instance("b1", "v2")
B2 = instance("b2", "v2")
LONE = instance("lone", "v1", slots=1, alone=True)


# -- instances join and leave


async def test_an_instance_that_joins_or_leaves_changes_nothing_for_what_it_does_not_fit(
    system: System,
) -> None:
    await system.join(A1, B1)
    await system.task()
    assert await system.sweep() == ["ns.greeter.a1"]
    before = await system.stored()
    system.topics.clear()
    for _ in range(3):
        await system.join(B2)
        await system.leave("b2")
    assert system.topics == []
    assert await system.stored() == before


async def test_a_run_that_waits_at_an_instance_that_leaves_is_sent_to_another_one(system: System) -> None:
    await system.join(A1, B1)
    await system.task()
    await system.sweep()
    dispatches = (await system.stored()).dispatches
    await system.join(A2._replace(running=4))
    await system.task("other")
    await system.store.transact(lambda tx: tx.instances.put([A2]))
    system.topics.clear()
    await system.leave("a1")
    assert system.topics == ["ns.greeter.a2", "ns.greeter.a2"]
    assert (await system.stored()).dispatches == dispatches


async def test_what_waits_at_an_instance_that_stays_is_left_there(system: System) -> None:
    await system.join(A1, B1)
    await system.task()
    await system.sweep()
    await system.join(instance("a2", "v1", slots=0))
    system.topics.clear()
    await system.leave("a2")
    assert system.topics == []


async def test_a_run_is_sent_on_though_all_that_are_left_have_one_version(system: System) -> None:
    await system.join(A1, B1)
    await system.task()
    await system.sweep()
    await system.join(A2._replace(slots=0))
    await system.leave("b1")
    system.topics.clear()
    await system.leave("a1")
    assert system.topics == ["ns.greeter"]


async def test_a_run_that_nobody_fits_is_not_published_and_not_counted(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await system.join(B1)
    await system.task()
    assert await system.sweep() == []
    held = await system.stored()
    assert held.dispatches == 1
    assert "published again" not in caplog.text
    await system.join(B2)
    assert system.topics == []
    system.waiting = True  # messages of other tasks of the service
    await system.join(A1)
    assert system.topics == ["ns.greeter.a1"]
    assert (await system.stored()).dispatches == 1


async def test_a_stranded_run_is_looked_at_less_and_less_often(system: System) -> None:
    await system.join(B1)
    await system.task()
    pauses = []
    for _ in range(9):
        await system.store.transact(
            lambda tx: tx.instances.put([B1._replace(lease_expires_at=system.now + LEASE)])
        )
        assert await system.sweep() == []
        due = (await system.stored()).redispatch_at
        assert due is not None
        pauses.append((due - system.now).total_seconds())
        system.now = due + MOMENT
    assert [round(each) for each in pauses] == [15, 15, 30, 60, 120, 240, 480, 960, 960]


async def test_a_run_is_published_when_its_only_instance_is_back_from_a_pause(system: System) -> None:
    await system.join(A1._replace(lease_expires_at=NOW - timedelta(seconds=1)), B1)
    await system.task()
    assert await system.sweep() == []
    await system.change(lambda unit: unit.renew_lease(unit.instances.find("a1"), LEASE))
    assert system.topics == ["ns.greeter.a1"]


async def test_an_instance_that_only_runs_suspects_gets_nothing(system: System) -> None:
    await system.join(LONE, B1)
    await system.task()
    assert await system.sweep() == []
    await system.leave("lone")
    await system.join(LONE)
    assert system.topics == []


async def test_a_suspect_stays_in_its_topic_whoever_joins_or_leaves(system: System) -> None:
    await system.join(B1)
    await system.task(deaths=2)
    await system.join(A1)
    await system.leave("a1")
    assert system.topics == []


# -- all instances are full


async def test_a_suspect_is_not_held_though_all_others_are_full(system: System) -> None:
    await system.join(A1._replace(running=4))
    await system.task(runs=False, deaths=2)
    assert await system.sweep() == ["ns.greeter._suspects"]
    assert not system.dispatcher.full


async def test_what_is_known_to_be_lost_is_published_though_all_instances_are_full(system: System) -> None:
    await system.join(A1._replace(running=4))
    await system.task(runs=False)
    await system.dispatcher.dispatch_all()
    assert system.topics == ["ns.greeter"]


async def test_what_was_held_behind_full_instances_is_due_soon_when_one_has_a_slot(system: System) -> None:
    await system.join(A1._replace(running=4))
    await system.task(runs=False, status_changed_at=NOW - timedelta(seconds=600))
    await system.task("often", runs=False, dispatches=9, redispatch_at=NOW + timedelta(seconds=900))
    assert await system.sweep() == []
    assert (await system.stored()).redispatch_at == NOW + timedelta(seconds=600)
    assert system.dispatcher.full == {"greeter"}
    await system.dispatcher.resume_some("greeter")
    assert (await system.stored()).redispatch_at == NOW + LEASE
    assert (await system.stored("often")).redispatch_at == NOW + timedelta(seconds=900), "it has its own pace"
    await system.dispatcher.resume_some("greeter")
    assert system.dispatcher.full == set()


async def test_a_heartbeat_tells_that_there_is_a_free_slot(system: System) -> None:
    for running, free in ((4, set[str]()), (3, {"greeter"})):
        await system.change(lambda unit, r=running: unit.renew_lease(A1._replace(running=r), LEASE))
        assert system.committed[-1].free == free


async def test_messages_that_wait_for_the_work_topic_do_not_hold_up_those_to_one_instance(
    system: System,
) -> None:
    await system.join(A1, B1)
    await system.task()
    await system.task("any", runs=False)
    system.waiting = True
    assert await system.sweep() == ["ns.greeter.a1"]
