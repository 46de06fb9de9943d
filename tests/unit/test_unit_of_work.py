"""A command uses the rows that it has declared, and a row that it has not declared is never "not found"."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import cast

import pytest
from pydantic import BaseModel

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.deaths import Blame
from llama_deploy.control_plane.decisions.dispatch_rules import DispatchPace
from llama_deploy.control_plane.decisions.transitions import Transition
from llama_deploy.control_plane.requests.sessions.session_requests import Sessions
from llama_deploy.control_plane.storage import read_budget
from llama_deploy.control_plane.storage.reads import Reads, RowKind, UndeclaredReadError
from llama_deploy.control_plane.storage.unit import Committed, Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.errors import LlamaDeployError, SessionNotFoundError, TaskNotFoundError, UnavailableError
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.large_values import DEFERRED_BYTES, Deferred, ValueNotReadError, text_of
from llama_deploy.state_stores.records import RUN_FORMAT, RunHeadRecord, ServiceRecord, TaskRecord
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.records import NOW, a_session, a_task, an_instance
from llama_deploy.types import EventDefinition, ServiceDefinition, SessionOptions, TaskResult, TaskStatus
from llama_deploy.types.instance_protocol import RunRecord
from llama_deploy.types.topics import Topics

EVENT = EventDefinition(event_obj_str="{}", idempotency_key="key")
ALL = Reads(
    tasks={"t1"},
    sessions={"s1"},
    sessions_of_tasks={"t1"},
    ending_tasks={"t1"},
    runs={"t1"},
    inbox_keys={("t1", "key")},
    inboxes={"t1"},
    instances={"i1"},
    services={"greeter"},
    questions={"q1"},
    asking_tasks={"t1"},
)


def fill(tx: StoreTransaction) -> None:
    tx.sessions.insert([a_session("s1")])
    tx.tasks.insert(
        [
            a_task("t1", status=TaskStatus.RUNNING, instance_id="i1"),
            a_task("t2"),
        ]
    )
    tx.services.put([ServiceRecord("greeter", "{}")])
    tx.instances.put([an_instance("i1")])


@pytest.fixture
async def store() -> AsyncIterator[SQLiteStateStore]:
    async with await SQLiteStateStore.connect("sqlite:///:memory:") as store:
        await store.transact(fill)
        yield store


@pytest.fixture
async def committed() -> list[Committed]:
    return []


@pytest.fixture
async def writer(store: SQLiteStateStore, committed: list[Committed]) -> AsyncIterator[Writer]:
    writer = Writer(
        store,
        clock=lambda: NOW,
        topics=Topics("test"),
        pace=DispatchPace(unclaimed=Backoff(10, longest=60), lost=Backoff(1, longest=60)),
        after_commit=committed.append,
    )
    yield writer
    await writer.close()


def task(unit: Unit) -> TaskRecord:
    """Return the task without asking the unit."""
    return a_task("t1", status=TaskStatus.RUNNING, instance_id="i1")


USES: dict[str, tuple[RowKind, Callable[[Unit], object]]] = {
    "find a task": (RowKind.TASK, lambda unit: unit.tasks.find("t1")),
    "get a task": (RowKind.TASK, lambda unit: unit.tasks.get("t1")),
    "change a task": (RowKind.TASK, lambda unit: unit.apply(Transition(task(unit)))),
    "move on a task": (RowKind.TASK, lambda unit: unit.move_on(task(unit), Blame.CHARGED)),
    "drop a task": (RowKind.TASK, lambda unit: unit.drop(task(unit))),
    "postpone a task": (RowKind.TASK, lambda unit: unit.postpone(task(unit))),
    "read an inbox": (RowKind.TASK, lambda unit: unit.inbox.unconsumed(["t1"])),
    "send an event": (RowKind.INBOX, lambda unit: unit.add_to_inbox(task(unit), EVENT)),
    "find a question": (RowKind.QUESTION, lambda unit: unit.questions.find("q1")),
    "read open questions": (RowKind.OPEN_QUESTIONS, lambda unit: unit.questions.open_of("t1")),
    "find a session": (RowKind.SESSION, lambda unit: unit.sessions.find("s1")),
    "get a session": (RowKind.SESSION, lambda unit: unit.sessions.get("s1")),
    "merge a state": (RowKind.SESSION, lambda unit: unit.sessions.merge_state("s1", {})),
    "put a state": (RowKind.SESSION, lambda unit: unit.sessions.put_state(a_session("s1"), {})),
    "delete a session": (RowKind.SESSION, lambda unit: unit.delete_session("s1", cancel=True)),
    "read open tasks": (RowKind.OPEN_TASKS, lambda unit: unit.tasks.open_of("s1")),
    "read a run": (RowKind.RUN, lambda unit: unit.runs.record(task(unit))),
    "look for an event": (RowKind.INBOX_KEY, lambda unit: unit.inbox.was_sent("t1", EVENT)),
    "find an instance": (RowKind.INSTANCE, lambda unit: unit.instances.find("i1")),
    "put an instance": (RowKind.INSTANCE, lambda unit: unit.instances.put(an_instance("i1"))),
    "delete an instance": (RowKind.INSTANCE, lambda unit: unit.instances.delete(["i1"])),
    "read an instance's tasks": (RowKind.INSTANCE, lambda unit: unit.tasks.of_instances(["i1"])),
    "look for a service": (RowKind.SERVICE, lambda unit: unit.services.exists("greeter")),
    "put a service": (RowKind.SERVICE, lambda unit: unit.services.put(ServiceRecord("greeter", "{}"))),
    "delete a service": (RowKind.SERVICE, lambda unit: unit.services.delete("greeter")),
    "read a service's instances": (RowKind.SERVICE, lambda unit: unit.instances.of_service("greeter")),
}


@pytest.mark.parametrize("name", USES)
async def test_an_undeclared_use_is_a_programming_error(writer: Writer, name: str) -> None:
    kind, use = USES[name]
    with pytest.raises(UndeclaredReadError) as raised:
        await writer.write(Command(use))
    assert raised.value.kind is kind
    assert not isinstance(raised.value, LlamaDeployError)


@pytest.mark.parametrize("name", USES)
async def test_a_declared_use_is_not(writer: Writer, name: str) -> None:
    _, use = USES[name]
    await writer.write(Command(use, ALL))


def test_every_kind_of_row_is_tried() -> None:
    assert {kind for kind, _ in USES.values()} == set(RowKind)


async def test_an_end_needs_the_open_tasks_of_the_session(writer: Writer) -> None:
    def cancel(unit: Unit) -> object:
        unit.apply(Transition(a_task("t1", status=TaskStatus.WAITING)))
        return unit.apply(lifecycle.cancel(unit.tasks.get("t1"), at=unit.now))

    with pytest.raises(UndeclaredReadError) as raised:
        await writer.write(Command(cancel, Reads.of_tasks("t1")))
    assert (raised.value.kind, raised.value.key) == (RowKind.OPEN_TASKS, "s1")
    await writer.write(Command(cancel, Reads.of_tasks("t1", may_end=True)))


async def test_what_another_command_declares_does_not_count(writer: Writer) -> None:
    def careless(unit: Unit) -> object:
        return unit.tasks.get("t1")

    outcomes = await asyncio.gather(
        writer.write(Command(careless, ALL)), writer.write(Command(careless)), return_exceptions=True
    )
    assert isinstance(outcomes[0], TaskRecord)
    assert isinstance(outcomes[1], UndeclaredReadError)


async def test_declared_rows_that_do_not_exist_are_not_found(writer: Writer) -> None:
    reads = Reads(tasks={"unknown"}, sessions={"unknown"}, instances={"unknown"}, services={"unknown"})

    def use(unit: Unit) -> tuple[object, ...]:
        with pytest.raises(TaskNotFoundError):
            unit.tasks.get("unknown")
        with pytest.raises(SessionNotFoundError):
            unit.sessions.get("unknown")
        return unit.instances.find("unknown"), unit.services.exists("unknown")

    assert await writer.write(Command(use, reads)) == (None, False)


async def test_the_tasks_of_a_declared_instance_may_end(
    writer: Writer, store: SQLiteStateStore, committed: list[Committed]
) -> None:
    def lose(unit: Unit) -> None:
        for each in unit.tasks.of_instances(["i1"]):
            unit.move_on(each, Blame.CHARGED)

    for _ in range(3):
        running = a_task("t1", status=TaskStatus.RUNNING, instance_id="i1")
        stored = (await store.read(lambda tx: tx.tasks.load(["t1"])))["t1"]
        changed = Transition(running._replace(losses=stored.losses, attempt=stored.attempt))
        await writer.write(Command(lambda unit, it=changed: unit.apply(it), Reads.of_tasks("t1")))  # type: ignore[misc]
        await writer.write(Command(lose, Reads(instances={"i1"})))
    assert committed[-1].ended["t1"].status is TaskStatus.FAILED
    assert [item.message.data["task_id"] for item in committed[-1].outgoing] == ["t2"]
    following = (await store.read(lambda tx: tx.tasks.load(["t2"])))["t2"]
    assert (following.status, following.redispatch_at) == (TaskStatus.QUEUED, NOW + timedelta(seconds=10))


def test_reads_are_merged() -> None:
    both = Reads.of_tasks("a", may_end=True) | Reads.of_tasks("b", with_run=True) | Reads(services={"x"})
    assert both == Reads(tasks={"a", "b"}, ending_tasks={"a"}, runs={"b"}, services={"x"})


async def test_a_written_state_is_dated(writer: Writer, store: SQLiteStateStore) -> None:
    old = a_session("old")._replace(updated_at=NOW - timedelta(days=1))
    await store.transact(lambda tx: tx.sessions.insert([old]))
    await writer.write(
        Command(lambda unit: unit.sessions.merge_state("old", {"x": 1}), Reads(sessions={"old"}))
    )
    assert (await store.read(lambda tx: tx.sessions.load(["old"])))["old"].updated_at == NOW


@pytest.mark.parametrize("stored_format", [RUN_FORMAT, RUN_FORMAT + 1])
async def test_a_run_of_a_newer_format_is_refused(
    writer: Writer, store: SQLiteStateStore, stored_format: int
) -> None:
    await store.transact(lambda tx: tx.tasks.change([(a_task("t1"), a_task("t1", has_run=True))]))
    await store.transact(lambda tx: tx.runs.put([RunHeadRecord("t1", "f", "1", format=stored_format)]))

    async def read() -> RunRecord | Deferred | None:
        return await writer.write(
            Command(lambda unit: unit.runs.record(unit.tasks.get("t1")), Reads.of_tasks("t1", with_run=True))
        )

    if stored_format == RUN_FORMAT:
        assert await read() is not None
    else:
        with pytest.raises(
            UnavailableError, match=rf"t1 is stored in format {stored_format}.*the release that"
        ):
            await read()


@pytest.mark.parametrize("model", [TaskResult, ServiceDefinition, EventDefinition])
def test_stored_json_with_later_fields_can_be_read(model: type[BaseModel]) -> None:
    stored = {"task_id": "t", "service_name": "s", "event_obj_str": "{}", "a_later_field": {"x": 1}}
    assert "a_later_field" not in model.model_validate_json(json.dumps(stored)).model_dump()


async def test_a_write_that_fails_does_not_take_others_along(writer: Writer, store: SQLiteStateStore) -> None:
    def overflow(unit: Unit) -> None:
        unit.services.put(ServiceRecord("echo", cast("str", 10**30)))

    sessions = Sessions(store=store, writer=writer)
    bad = writer.write(Command(overflow, Reads(services={"echo"})))
    good = [sessions.create(SessionOptions()) for _ in range(5)]
    outcomes = await asyncio.gather(bad, *good, return_exceptions=True)
    assert isinstance(outcomes[0], OverflowError)
    stored = await store.read(lambda tx: {session.session_id for session in tx.sessions.page(limit=100)})
    assert set(outcomes[1:]) <= stored


def merging(changes: dict[str, object]) -> Command[int]:
    return Command(lambda unit: unit.sessions.merge_state("s1", changes).version, Reads(sessions={"s1"}))


async def test_large_states_are_merged_in_one_transaction(writer: Writer, store: SQLiteStateStore) -> None:
    large, other = "x" * (2 * DEFERRED_BYTES), "y" * (3 * DEFERRED_BYTES)
    changes: list[dict[str, object]] = [{"a": large}, {"b": 1}, {"c": other}, {"a": 2, "c": 3}, {"d": large}]
    versions = await writer.write_all([merging(each) for each in changes])
    assert versions == [1, 2, 3, 4, 5]
    session = (await store.read(lambda tx: tx.sessions.load(["s1"])))["s1"]
    assert (json.loads(text_of(session.state)), session.version) == ({"a": 2, "b": 1, "c": 3, "d": large}, 5)
    # A command that does not use the state reads the session without it.
    assert await writer.write(
        Command(lambda unit: isinstance(unit.sessions.get("s1").state, Deferred), Reads(sessions={"s1"}))
    )


async def test_a_task_with_large_values_is_changed_without_them(
    writer: Writer, store: SQLiteStateStore
) -> None:
    large = json.dumps({"text": "x" * (2 * DEFERRED_BYTES)})
    await store.transact(lambda tx: tx.tasks.insert([a_task("large", input=large)]))

    def cancel(unit: Unit) -> TaskRecord:
        cancelled = unit.apply(lifecycle.cancel(unit.tasks.get("large"), at=unit.now))
        with pytest.raises(ValueNotReadError, match=f"{len(large)} bytes"):
            text_of(cancelled.input)
        return unit.tasks.whole(cancelled)

    cancelled = await writer.write(Command(cancel, Reads.of_tasks("large", may_end=True)))
    assert (cancelled.input, cancelled.status) == (large, TaskStatus.CANCELLED)
    assert (await store.read(lambda tx: tx.tasks.load(["large"])))["large"] == cancelled


async def test_runs_that_are_too_large_together_are_not_read(
    writer: Writer, store: SQLiteStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_budget, "MAX_READ_BYTES", 250)
    sizes = {"r1": 200, "r2": 100, "r3": 120, "r4": 30}
    await store.transact(
        lambda tx: (
            tx.tasks.insert([a_task(name, has_run=True) for name in sizes]),
            tx.runs.put([RunHeadRecord(name, "f", "1", state="x" * size) for name, size in sizes.items()]),
        )
    )

    def read(unit: Unit) -> dict[str, int | None]:
        records = {name: unit.runs.record(unit.tasks.get(name)) for name in sizes}
        return {name: each.size if isinstance(each, Deferred) else None for name, each in records.items()}

    found = await writer.write(Command(read, Reads.of_tasks(*sizes, with_run=True)))
    assert found == {"r1": 200, "r2": None, "r3": None, "r4": None}
