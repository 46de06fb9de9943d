"""A deployment harms no run: a run that is stored continues with versions that fit, or waits for one."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import ModuleType
from typing import Any, ClassVar, Final

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from llama_deploy import Client
from llama_deploy.control_plane.direct_gateway import DirectGateway
from llama_deploy.errors import ConflictError, TaskFinishedError, UnavailableError, VersionNotFoundError
from llama_deploy.services import AnyWorkflow, WorkflowService, WorkflowServiceConfig
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.types import Durability, TaskMove, TaskStatus, TaskView
from llama_deploy.types.instance_protocol import (
    ClaimReply,
    ClaimRequest,
    Heartbeat,
    HeartbeatReply,
    JournalReply,
    JournalWrite,
    ProcessDeath,
)
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.in_process import Stack, result_of, running_stack, until


class Question(InputRequiredEvent):
    n: int


class Answer(HumanResponseEvent):
    text: str


class Decided(Event):
    n: int
    text: str


class Approve(Workflow):
    """The version that begins the runs."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Decided:
        await ctx.store.set("n", ev.n)
        answer = await ctx.wait_for_event(Answer, waiter_event=Question(n=ev.n))
        return Decided(n=ev.n, text=answer.text)

    @step
    async def decide(self, ctx: Context, ev: Decided) -> StopEvent:
        return StopEvent(result=[ev.n, ev.text, await ctx.store.get("n"), "old"])


class Recorded(Event):
    n: int
    text: str


class WithRecord(Workflow):
    """A version with one step more, between two that the old one has."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Decided:
        await ctx.store.set("n", ev.n)
        answer = await ctx.wait_for_event(Answer, waiter_event=Question(n=ev.n))
        return Decided(n=ev.n, text=answer.text)

    @step
    async def decide(self, ev: Decided) -> Recorded:
        return Recorded(n=ev.n, text=ev.text)

    @step
    async def record(self, ctx: Context, ev: Recorded) -> StopEvent:
        return StopEvent(result=[ev.n, ev.text, await ctx.store.get("n"), "recorded"])


class Renamed(Workflow):
    """A version in which the step that waits has another name."""

    @step
    async def request(self, ctx: Context, ev: StartEvent) -> Decided:
        await ctx.store.set("n", ev.n)
        answer = await ctx.wait_for_event(Answer, waiter_event=Question(n=ev.n))
        return Decided(n=ev.n, text=answer.text)

    @step
    async def decide(self, ctx: Context, ev: Decided) -> StopEvent:
        return StopEvent(result=[ev.n, ev.text, await ctx.store.get("n"), "renamed"])


class Hearing(Workflow):
    """Asks in one step, and hears the answer in another one."""

    @step
    async def ask(self, ev: StartEvent) -> Question:
        return Question(n=ev.n)

    @step
    async def hear(self, ev: Answer) -> StopEvent:
        return StopEvent(result=ev.text)


class Listening(Workflow):
    """The same, with another name of the step that hears."""

    @step
    async def ask(self, ev: StartEvent) -> Question:
        return Question(n=ev.n)

    @step
    async def listen(self, ev: Answer) -> StopEvent:
        return StopEvent(result=ev.text)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    """Nothing is published again within the time of a test: all continues because something has come."""
    async with running_stack(lease_seconds=30, redispatch_seconds=600) as stack:
        yield stack


class Fleet:
    """Instances of a service, which join and leave."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._instances: dict[str, list[AsyncExitStack]] = {}

    async def join(self, workflow: AnyWorkflow, *, count: int = 1, **settings: Any) -> str:
        """Let instances join, and return their version."""
        version = ""
        for _ in range(count):
            service = self._stack.service(workflow, idle_timeout=0.01, **settings)
            assert service.service_definition.workflow is not None
            version = service.service_definition.workflow.version
            running = AsyncExitStack()
            await running.enter_async_context(self._stack.serving(service))
            self._instances.setdefault(version, []).append(running)
        return version

    async def leave(self, version: str) -> None:
        """Let the instances of a version leave."""
        for running in self._instances.pop(version, []):
            await running.aclose()

    async def close(self) -> None:
        for version in list(self._instances):
            await self.leave(version)


@pytest.fixture
async def fleet(stack: Stack) -> AsyncIterator[Fleet]:
    fleet = Fleet(stack)
    yield fleet
    await fleet.close()


async def view(stack: Stack, task_id: str) -> TaskView:
    return await stack.plane.tasks.get(task_id)


async def parked(stack: Stack, count: int) -> list[str]:
    """Return tasks that wait for their answers."""
    tasks = [await stack.submit(n=n) for n in range(count)]

    async def all_wait() -> bool:
        return all([(await view(stack, task)).status is TaskStatus.WAITING for task in tasks])

    await until(all_wait)
    return tasks


async def answer(stack: Stack, tasks: list[str]) -> None:
    for task in tasks:
        await stack.send(task, Answer(text="yes"))


async def stranded(stack: Stack) -> dict[str, int]:
    """Return how many tasks of the service are stranded, by the reason."""
    return {each.reason: each.count for each in (await stack.plane.services.get("service")).stranded}


async def test_runs_continue_in_a_version_with_a_step_more(stack: Stack, fleet: Fleet) -> None:
    old = await fleet.join(Approve)
    tasks = await parked(stack, 12)
    await fleet.join(WithRecord)
    await answer(stack, tasks[:6])
    both = [result_of(await stack.end(task)) for task in tasks[:6]]
    await fleet.leave(old)
    await answer(stack, tasks[6:])
    alone = [result_of(await stack.end(task)) for task in tasks[6:]]
    assert [each[:3] for each in both + alone] == [[n, "yes", n] for n in range(12)]
    assert {each[3] for each in alone} == {"recorded"}
    assert await stranded(stack) == {}


async def test_a_run_goes_to_the_instance_that_fits(stack: Stack, fleet: Fleet) -> None:
    await fleet.join(Approve, max_concurrent_tasks=2)
    tasks = await parked(stack, 12)
    await fleet.join(Renamed, count=2)
    assert await stranded(stack) == {}
    await answer(stack, tasks)
    results = [result_of(await stack.end(task)) for task in tasks]
    assert results == [[n, "yes", n, "old"] for n in range(12)]


async def test_a_message_that_another_version_takes_first_is_sent_on(stack: Stack, fleet: Fleet) -> None:
    old = await fleet.join(Approve)
    tasks = await parked(stack, 3)
    await fleet.leave(old)
    await answer(stack, tasks)  # nobody is there, so the messages wait for anybody
    await fleet.join(Renamed)
    await until(lambda: is_stranded(stack, *tasks))
    await fleet.join(Approve)
    assert [result_of(await stack.end(task))[3] for task in tasks] == ["old"] * 3


async def is_stranded(stack: Stack, *tasks: str) -> bool:
    views = [await view(stack, task) for task in tasks]
    return all(each.stranded is not None and "'ask'" in each.stranded for each in views)


async def test_a_stranded_run_takes_events_and_continues_when_its_version_returns(
    stack: Stack, fleet: Fleet
) -> None:
    old = await fleet.join(Approve)
    tasks = await parked(stack, 5)
    new = await fleet.join(Renamed)
    await fleet.leave(old)
    for task in tasks:
        shown = await view(stack, task)
        assert shown.status is TaskStatus.WAITING
        assert shown.stranded == (
            f"no living instance of service 'service' fits: version {new[:12]}: step 'ask' does not exist in"
            " this version, and the run needs it"
        )
    await answer(stack, tasks[:3])
    views = [await view(stack, task) for task in tasks]
    assert [each.status for each in views] == [TaskStatus.QUEUED] * 3 + [TaskStatus.WAITING] * 2
    [(reason, count)] = (await stranded(stack)).items()
    assert ("'ask'" in reason, count) == (True, 5)
    # Others run meanwhile.
    assert (await stack.plane.services.get("service")).instances[0].version == new
    fresh = await stack.submit(n=100)
    await stack.send(fresh, Answer(text="yes"))
    assert result_of(await stack.end(fresh)) == [100, "yes", 100, "renamed"]

    await fleet.join(Approve)
    assert [result_of(await stack.end(task)) for task in tasks[:3]] == [
        [n, "yes", n, "old"] for n in range(3)
    ]
    await answer(stack, tasks[3:])
    assert [result_of(await stack.end(task)) for task in tasks[3:]] == [[n, "yes", n, "old"] for n in (3, 4)]
    assert await stranded(stack) == {}


async def test_without_any_instance_a_run_is_stranded(stack: Stack, fleet: Fleet) -> None:
    old = await fleet.join(Approve)
    [task] = await parked(stack, 1)
    await fleet.leave(old)
    assert (await view(stack, task)).stranded == "no instance of service 'service' is alive"
    await fleet.join(Approve)
    assert (await view(stack, task)).stranded is None


async def test_a_run_that_has_asked_needs_the_step_that_hears(stack: Stack, fleet: Fleet) -> None:
    old = await fleet.join(Hearing)
    [task] = await parked(stack, 1)
    await fleet.join(Listening)
    await fleet.leave(old)
    assert "step 'hear' does not exist" in str((await view(stack, task)).stranded)
    await fleet.join(Hearing)
    await answer(stack, [task])
    assert result_of(await stack.end(task)) == "yes"


async def test_a_run_takes_a_slot_only_if_one_is_free(stack: Stack, fleet: Fleet) -> None:
    await fleet.join(Crowded, max_concurrent_tasks=2)
    Crowded.running = Crowded.most = 0
    tasks = await parked(stack, 8)
    await fleet.join(Renamed)
    await answer(stack, tasks)
    assert [result_of(await stack.end(task)) for task in tasks] == ["yes"] * 8
    assert Crowded.most <= 2


class Crowded(Workflow):
    """Counts how many runs work at the same time."""

    running: ClassVar[int] = 0
    most: ClassVar[int] = 0

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Decided:
        answer = await ctx.wait_for_event(Answer, waiter_event=Question(n=ev.n))
        return Decided(n=ev.n, text=answer.text)

    @step
    async def work(self, ev: Decided) -> StopEvent:
        Crowded.running += 1
        Crowded.most = max(Crowded.most, Crowded.running)
        await asyncio.sleep(0.05)  # the work
        Crowded.running -= 1
        return StopEvent(result=ev.text)


class Gated(Workflow):
    """Takes its slot, after it was answered, until the gate is open."""

    gate: ClassVar[asyncio.Event]
    at_work: ClassVar[int]

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Decided:
        answer = await ctx.wait_for_event(Answer, waiter_event=Question(n=ev.n))
        return Decided(n=ev.n, text=answer.text)

    @step
    async def work(self, ev: Decided) -> StopEvent:
        Gated.at_work += 1
        await self.gate.wait()
        return StopEvent(result=ev.n)


class Mortal(DirectGateway):
    """Reaches the control plane until its instance is dead."""

    is_dead = False

    def beat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        self._check()
        return super().beat(heartbeat)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        self._check()
        return await super().claim(request)

    async def journal(self, write: JournalWrite) -> JournalReply:
        self._check()
        return await super().journal(write)

    def _check(self) -> None:
        if self.is_dead:
            raise UnavailableError("the instance is dead")


@pytest.mark.parametrize("how", ["reported", "silent"])
async def test_what_waits_at_an_instance_that_dies_goes_to_another_one(how: str) -> None:
    Gated.gate, Gated.at_work = asyncio.Event(), 0
    async with running_stack(lease_seconds=2.0, redispatch_seconds=600) as stack:
        config = WorkflowServiceConfig(
            host="127.0.0.1",
            port=0,
            service_name="service",
            idle_timeout=0.01,
            max_concurrent_tasks=1,
            drain_timeout=0,
        )
        gateway = Mortal(stack.plane)
        first = WorkflowService(Gated, stack.queue, config, gateway=gateway)
        fleet = Fleet(stack)
        async with stack.serving(first):
            tasks = await parked(stack, 3)
            await fleet.join(Renamed)
            await answer(stack, tasks)
            await until(lambda: Gated.at_work == 1)
            await fleet.join(Gated)
            gateway.is_dead = True
            if how == "reported":
                death = ProcessDeath(instances=[first.instance_id], reason="was killed")
                await stack.plane.deaths.report(death)
            await until(lambda: Gated.at_work == 4)
            Gated.gate.set()
            assert [result_of(await stack.end(task)) for task in tasks] == [0, 1, 2]
            gateway.is_dead = False  # so that it stops soon
        await fleet.close()


async def test_what_waits_at_a_busy_instance_goes_to_one_that_joins(stack: Stack, fleet: Fleet) -> None:
    Gated.gate, Gated.at_work = asyncio.Event(), 0
    await fleet.join(Gated, max_concurrent_tasks=1)
    tasks = await parked(stack, 3)
    await fleet.join(Renamed)
    await answer(stack, tasks)
    await until(lambda: Gated.at_work == 1)
    await fleet.join(Gated)
    await until(lambda: Gated.at_work == 3)
    Gated.gate.set()
    assert [result_of(await stack.end(task)) for task in tasks] == [0, 1, 2]


# -- runs with entries


class First(Event):
    n: int


class Slow(Workflow):
    """Is stopped in its second step."""

    gate: ClassVar[asyncio.Event]
    seen: ClassVar[list[str]]

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> First:
        self.seen.append("first")
        await ctx.store.set("kept", ev.n)
        return First(n=ev.n)

    @step
    async def second(self, ctx: Context, ev: First) -> StopEvent:
        self.seen.append("second")
        await self.gate.wait()
        return StopEvent(result=[ev.n, await ctx.store.get("kept")])


class Watched(Slow):
    """Has a further step that takes an event which the run has had already."""

    @step
    async def watch(self, ev: First) -> None:
        self.seen.append("watch")


async def killed(stack: Stack, fleet: Fleet, version: str, task: str) -> None:
    """Let the instances of a version leave without the snapshot that they write: they were killed."""
    entries = await stack.store.read(lambda tx: tx.runs.load_journal([task]))
    heads = await stack.store.read(lambda tx: tx.runs.load([task]))
    await fleet.leave(version)

    def undo(tx: StoreTransaction) -> None:
        tx.runs.delete([task])
        tx.runs.put(list(heads.values()))
        tx.runs.insert_journal(entries)

    await stack.store.transact(undo)
    assert entries


async def test_a_step_that_was_added_gets_nothing_of_the_past(stack: Stack, fleet: Fleet) -> None:
    Slow.gate, Slow.seen = asyncio.Event(), []
    old = await fleet.join(Slow, drain_timeout=0)
    task = await stack.submit(n=3)
    await until(lambda: "second" in Slow.seen)
    await killed(stack, fleet, old, task)
    Slow.gate.set()
    await fleet.join(Watched)
    assert result_of(await stack.end(task)) == [3, 3]
    assert Slow.seen == ["first", "second", "second"]


class Piece(Event):
    n: int


class Done(Event):
    n: int


class FanOut(Workflow):
    """Is stopped while some pieces are done; joins the others afterwards."""

    gate: ClassVar[asyncio.Event]
    seen: ClassVar[list[str]]

    @step
    async def split(self, ev: StartEvent) -> list[Piece]:
        self.seen.append("split")
        return [Piece(n=n) for n in range(4)]

    @step(retry_policy=retry_policy(wait=wait_fixed(0), stop=stop_after_attempt(3)))
    async def work(self, ctx: Context, ev: Piece) -> Done:
        self.seen.append(f"work {ev.n}")
        if ev.n == 0 and ctx.retry_info().retry_number == 0:
            raise ValueError("once")
        if ev.n == 3:
            await self.gate.wait()
        return Done(n=ev.n)

    @step
    async def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


class FanOutAndMore(FanOut):
    """Has steps that take the events of the fan-out too, and one before the others by name."""

    @step
    async def always(self, ev: StartEvent) -> None:
        self.seen.append("always")

    @step
    async def note(self, ev: Piece) -> None:
        self.seen.append("note")


class Slower(Event):
    pass


class Collecting(Workflow):
    """Is stopped when it has collected some events and waits for an answer in another step."""

    gate: ClassVar[asyncio.Event]
    seen: ClassVar[list[str]]

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Piece | Slower | None:
        for n in range(3):
            ctx.send_event(Piece(n=n))
        return Slower()

    @step
    async def slow(self, ctx: Context, ev: Slower) -> Piece:
        answer = await ctx.wait_for_event(Answer, waiter_event=Question(n=1))
        self.seen.append(answer.text)
        await self.gate.wait()
        return Piece(n=len(answer.text))

    @step
    async def collect(self, ctx: Context, ev: Piece) -> StopEvent | None:
        found = ctx.collect_events(ev, [Piece] * 4)
        return None if found is None else StopEvent(result=sorted(each.n for each in found))


class CollectingAndMore(Collecting):
    """Has a step that takes the collected events too."""

    @step
    async def also(self, ev: Piece) -> None:
        self.seen.append(f"also {ev.n}")


async def test_a_fan_out_continues_from_its_entries_in_a_version_with_more_steps(
    stack: Stack, fleet: Fleet
) -> None:
    FanOut.gate, FanOut.seen = asyncio.Event(), []
    old = await fleet.join(FanOut, drain_timeout=0)
    task = await stack.submit()

    async def are_stored() -> bool:
        entries = await stack.store.read(lambda tx: tx.runs.load_journal([task]))
        ended = {n for entry in entries for n in re.findall(r'Done",{"n":(\d)}', entry.entry)}
        return ended == {"0", "1", "2"}

    await until(are_stored)
    await killed(stack, fleet, old, task)
    before = len(FanOut.seen)
    FanOut.gate.set()
    await fleet.join(FanOutAndMore)
    assert result_of(await stack.end(task)) == [0, 1, 2, 3]
    assert FanOut.seen[before:] == ["work 3"]


async def test_collected_events_and_questions_continue_in_a_version_with_more_steps(
    stack: Stack, fleet: Fleet
) -> None:
    Collecting.gate, Collecting.seen = asyncio.Event(), []
    old = await fleet.join(Collecting, drain_timeout=0)
    task = await stack.submit()
    await stack.send(task, Answer(text="12345"))
    await until(lambda: Collecting.seen == ["12345"])
    await killed(stack, fleet, old, task)
    Collecting.gate.set()
    await fleet.join(CollectingAndMore)
    assert result_of(await stack.end(task)) == [0, 1, 2, 5]
    assert [each for each in Collecting.seen if "also" in each] in ([], ["also 5"])


async def test_data_with_more_fields_continues(
    stack: Stack, fleet: Fleet, version_of: Callable[..., type[Workflow]]
) -> None:
    old = await fleet.join(version_of("old"))
    tasks = await parked(stack, 3)
    await fleet.join(version_of("more", field='note: str = "none"'))
    await fleet.leave(old)
    await answer(stack, tasks)
    results = [result_of(await stack.end(task)) for task in tasks]
    assert results == [["more", n, n, "none", "none"] for n in range(3)]


async def test_data_with_another_type_does_not_arrive_as_it_was(
    stack: Stack, fleet: Fleet, version_of: Callable[..., type[Workflow]]
) -> None:
    old = await fleet.join(version_of("old"))
    tasks = await parked(stack, 1)
    await fleet.join(version_of("text", kind="str"))
    await fleet.leave(old)
    await answer(stack, tasks)
    reason = str((await view(stack, tasks[0])).stranded)
    assert "field 'amount' of Order was int and is str" in reason
    await fleet.join(version_of("old"))
    assert result_of(await stack.end(tasks[0])) == ["old", 0, 0, None, None]


SHOP: Final = """
from pydantic import BaseModel
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent
from tests.integration.test_versions import Answer, Question


class Order(Event):
    amount: {kind}
    {field}


class Counts(BaseModel):
    total: {kind} = {kind}()
    {field}


class Shop(Workflow):
    @step
    async def take(self, ctx: Context[Counts], ev: StartEvent) -> Order:
        async with ctx.store.edit_state() as state:
            state.total = ev.n
        return Order(amount=ev.n)

    @step
    async def ask(self, ctx: Context[Counts], ev: Order) -> StopEvent:
        await ctx.wait_for_event(Answer, waiter_event=Question(n=1))
        state = await ctx.store.get_state()
        notes = [getattr(each, "note", None) for each in (state, ev)]
        return StopEvent(result=["{name}", ev.amount, state.total, *notes])
"""


@pytest.fixture
def version_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., type[Workflow]]:
    """Return what makes a version of a workflow, as if the file of its module had been edited."""

    def make(name: str, *, kind: str = "int", field: str = "") -> type[Workflow]:
        module = ModuleType("shop")
        monkeypatch.setitem(sys.modules, "shop", module)
        exec(SHOP.format(name=name, kind=kind, field=field), vars(module))  # noqa: S102 - our own text
        made: type[Workflow] = module.Shop
        return made

    return make


# -- moving


def to(version: str, origin: str) -> TaskMove:
    return TaskMove.model_validate({"to": version[:12], "from": origin})


async def test_a_run_is_moved_only_to_a_version_that_fits(stack: Stack, fleet: Fleet) -> None:
    old = await fleet.join(Approve)
    [task] = await parked(stack, 1)
    renamed, recorded = await fleet.join(Renamed), await fleet.join(WithRecord)
    with pytest.raises(ConflictError, match="step 'ask' does not exist"):
        await stack.plane.tasks.move(task, to(renamed, "journal"))
    moved = await stack.plane.tasks.move(task, to(recorded, "journal"))
    assert (moved.status, moved.stranded) == (TaskStatus.WAITING, None)
    await answer(stack, [task])
    assert result_of(await stack.end(task)) == [0, "yes", 0, "recorded"]
    assert old != recorded


async def test_a_run_that_does_not_fit_is_begun_again_with_a_version(stack: Stack, fleet: Fleet) -> None:
    old = await fleet.join(Approve)
    [task] = await parked(stack, 1)
    await fleet.leave(old)
    new = await fleet.join(Renamed)
    await answer(stack, [task])
    await until(lambda: is_stranded(stack, task))
    others = await fleet.join(WithRecord, count=2)
    assert others != new
    moved = await stack.plane.tasks.move(task, to(new, "start"))
    assert (moved.status, moved.stranded) == (TaskStatus.QUEUED, None)
    # The answer that was sent before is offered again.
    assert result_of(await stack.end(task)) == [0, "yes", 0, "renamed"]
    events = await stack.events(task)
    assert [each.type for each in events] == ["Question", "Question", "StopEvent"]
    assert [each.index for each in events] == [0, 1, 2]


async def test_a_moved_task_waits_for_its_version_until_it_has_a_journal(stack: Stack, fleet: Fleet) -> None:
    Slow.gate, Slow.seen = asyncio.Event(), []
    old = await fleet.join(Approve)
    task, other = await parked(stack, 2)
    new = await fleet.join(Renamed, max_concurrent_tasks=1, durability="task")
    blocker = await stack.plane.tasks.move(other, to(new, "start"))
    await until(lambda: is_running(stack, blocker.task_id))
    await stack.plane.tasks.move(task, to(new, "start"))
    await fleet.leave(new)
    await until(lambda: is_pinned(stack, task, new))
    assert old
    await fleet.join(Renamed)
    await answer(stack, [task])
    assert result_of(await stack.end(task))[3] == "renamed"


async def is_running(stack: Stack, task: str) -> bool:
    return (await view(stack, task)).status is TaskStatus.RUNNING


async def is_shown_waiting(stack: Stack, task: str) -> bool:
    return (await view(stack, task)).status is TaskStatus.WAITING


async def is_pinned(stack: Stack, task: str, version: str) -> bool:
    reason = str((await view(stack, task)).stranded)
    return f"the task was moved to version {version[:12]}" in reason


async def test_what_cannot_be_moved_says_why(stack: Stack, fleet: Fleet) -> None:
    version = await fleet.join(Approve)
    ended, waiting = await parked(stack, 2)
    await answer(stack, [ended])
    await stack.end(ended)
    with pytest.raises(TaskFinishedError):
        await stack.plane.tasks.move(ended, to(version, "start"))
    with pytest.raises(VersionNotFoundError, match=f"living versions: {version[:12]}"):
        await stack.plane.tasks.move(waiting, to("abcdefabcdef", "start"))
    Slow.gate, Slow.seen = asyncio.Event(), []
    slow = await fleet.join(Slow)
    await fleet.leave(version)
    running = await stack.submit(n=1)
    await until(lambda: is_running(stack, running))
    with pytest.raises(ConflictError, match="running"):
        await stack.plane.tasks.move(running, to(slow, "start"))
    Slow.gate.set()
    assert result_of(await stack.end(running)) == [1, 1]


async def test_the_answer_to_a_move_tells_what_is_wrong(stack: Stack, fleet: Fleet) -> None:
    await fleet.join(Approve)
    [task] = await parked(stack, 1)
    renamed = await fleet.join(Renamed)
    http = HttpConnection(stack.server.config.url)

    async def refused(task_id: str, **body: str) -> tuple[int, str]:
        request = HttpRequest("POST", f"/tasks/{task_id}/move", json=body)
        status, answer = await http.send(request)
        return status, json.loads(answer)["detail"]

    status, detail = await refused(task, **{"to": renamed, "from": "journal"})
    assert status == 409
    assert "step 'ask' does not exist" in detail
    assert (await refused("unknown", **{"to": renamed, "from": "journal"}))[0] == 404
    assert (await refused(task, **{"to": "ffffffff", "from": "journal"}))[0] == 404
    for body in ({"to": renamed}, {"to": renamed, "from": "middle"}, {"to": "abc", "from": "start"}):
        assert (await refused(task, **body))[0] == 422
    await http.close()

    async with Client(control_plane_url=stack.server.config.url) as client:
        handle = client.task(task)
        with pytest.raises(ConflictError, match="step 'ask' does not exist"):
            await handle.move(renamed)
        with pytest.raises(VersionNotFoundError, match="living versions"):
            await handle.move("ffffffff")
        moved = await handle.move(renamed[:12], origin="start")
        assert (moved.attempt, moved.stranded) == (2, None)
        await handle.move(renamed[:12], origin="start")
    await answer(stack, [task])
    assert result_of(await stack.end(task))[3] == "renamed"


# -- runs of which nothing is stored


async def test_any_version_begins_a_volatile_run_again(stack: Stack, fleet: Fleet) -> None:
    old = await fleet.join(Approve, durability="task")
    task = await stack.submit(n=1)
    await until(lambda: is_shown_waiting(stack, task))  # in the memory of its instance
    await fleet.join(Renamed)
    await fleet.leave(old)
    await answer(stack, [task])
    ended = await stack.end(task)
    assert result_of(ended) == [1, "yes", 1, "renamed"]
    assert ended.durability is Durability.STEP
