"""One run of a workflow."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.client.payload_encoding import encode_event
from llama_deploy.services.run.hosting import host_runs
from llama_deploy.services.run.inbox.run_inbox import RunInbox
from llama_deploy.services.run.run_observer import RunHooks
from llama_deploy.services.run.steps.step_guard import guard_steps
from llama_deploy.services.run.workflow_run import RunLimits, WorkflowRun
from llama_deploy.services.values.payloads import EventRegistry, StreamedEvent
from llama_deploy.services.values.run_arguments import RunCall
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import TaskStatus
from llama_deploy.types.instance_protocol import InboxEntry


async def _hold() -> None:
    """The lease is always there."""


class Stubborn(Workflow):
    """Goes on streaming after its cancellation."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.streamed = asyncio.Event()

    @step
    async def stream(self, ctx: Context, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - found by its annotation
        try:
            ctx.write_event_to_stream(Event(number=1))
            await asyncio.Event().wait()
        finally:
            ctx.write_event_to_stream(Event(number=2))
            asyncio.get_running_loop().call_soon(self.streamed.set)
        return StopEvent()


def inbox_of(workflow: Workflow) -> RunInbox:
    return RunInbox(
        task_id="task", workflow=workflow, registry=EventRegistry(workflow, [Even]), on_seen=lambda _: None
    )


def entry_of(event: Event, *, seq: int = 1) -> InboxEntry:
    return InboxEntry(task_id="task", seq=seq, event=encode_event(event, service_name="echo"))


def the_run(
    workflow: Workflow,
    *,
    timeout: float | None = None,
    idle_timeout: float | None = None,
    inbox: RunInbox | None = None,
    on_event: Callable[[StreamedEvent], Awaitable[None]] | None = None,
    hold_lease: Callable[[], Awaitable[None]] = _hold,
) -> WorkflowRun:
    async def ignore(_: StreamedEvent) -> None: ...

    guard_steps(workflow)
    host_runs(workflow)
    return WorkflowRun(
        workflow,
        start=partial(RunCall.prepare(workflow, {}).start, None),
        inbox=inbox or inbox_of(workflow),
        hooks=RunHooks(
            on_event=on_event or ignore,
            on_waiting=lambda: None,
            on_working=lambda: None,
            hold_lease=hold_lease,
        ),
        label="the run",
        limits=RunLimits(timeout=timeout, idle_timeout=idle_timeout),
    )


async def test_nothing_of_a_cancelled_run_is_handed_on_when_it_has_returned() -> None:
    handed_on: list[StreamedEvent] = []
    first = asyncio.Event()

    async def note(event: StreamedEvent) -> None:
        handed_on.append(event)
        first.set()

    workflow = Stubborn()
    run = the_run(workflow, on_event=note)
    executing = asyncio.create_task(run.execute())
    async with asyncio.timeout(10):
        await first.wait()
        executing.cancel()
        await asyncio.wait({executing})
        await workflow.streamed.wait()
    assert executing.cancelled()
    assert [event.payload.data for event in handed_on] == [{"number": 1}]


class Item(Event):
    is_long: bool


class Square(Event):
    """What becomes of an item."""


class Both(Workflow):
    """A step after a short one, and beside them a long one that ends when it may."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.short_has_ended = threading.Event()
        self.long_may_end = threading.Event()

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Item | None:  # noqa: ARG002 - as above
        ctx.send_event(Item(is_long=True))
        ctx.send_event(Item(is_long=False))
        return None

    @step
    async def join(self, ctx: Context, ev: Square) -> StopEvent | None:
        return None if ctx.collect_events(ev, [Square] * 2) is None else StopEvent(result="both")


class InLoop(Both):
    """Its steps are coroutines."""

    @step(num_workers=2)
    async def square(self, ev: Item) -> Square:
        if ev.is_long:
            await eventually(self.long_may_end.is_set)
        else:
            self.short_has_ended.set()
        return Square()


class InThreads(Both):
    """Its steps are plain functions, which run in threads."""

    @step(num_workers=2)
    def square(self, ev: Item) -> Square:
        if ev.is_long:
            self.long_may_end.wait()
        else:
            self.short_has_ended.set()
        return Square()


class Lease:
    """Not confirmed any more when the short step has ended, until it is answered."""

    def __init__(self, workflow: Both) -> None:
        self._workflow = workflow
        self.is_asked_for = False
        self.answered = asyncio.Event()

    async def hold(self) -> None:
        if self._workflow.short_has_ended.is_set():
            self.is_asked_for = True
            await self.answered.wait()


async def pass_(seconds: float) -> None:
    """Let time pass."""
    begun = time.monotonic()
    await eventually(lambda: time.monotonic() - begun >= seconds)


@pytest.mark.parametrize("kind", [InLoop, InThreads])
async def test_a_run_that_is_held_up_does_not_run_out_of_time(kind: type[Both]) -> None:
    workflow = kind()
    lease = Lease(workflow)
    run = the_run(workflow, timeout=0.5, hold_lease=lease.hold)
    executing = asyncio.create_task(run.execute())
    async with asyncio.timeout(10):
        await eventually(lambda: lease.is_asked_for)
        workflow.long_may_end.set()  # from here on no step is at work
        await pass_(1.0)
        assert run.clock.running_seconds < 0.5
        lease.answered.set()
        ending = await executing
    assert ending is not None
    assert (ending.status, ending.value) == (TaskStatus.SUCCEEDED, "both")


@pytest.mark.parametrize("kind", [InLoop, InThreads])
async def test_steps_that_are_at_work_while_the_run_is_held_up_take_its_time(kind: type[Both]) -> None:
    workflow = kind()
    lease = Lease(workflow)
    run = the_run(workflow, timeout=0.3, hold_lease=lease.hold)
    executing = asyncio.create_task(run.execute())
    async with asyncio.timeout(10):
        await eventually(lambda: run.clock.running_seconds > 0.4)
        lease.answered.set()
        ending = await executing
        workflow.long_may_end.set()
    assert lease.is_asked_for
    assert ending is not None
    assert ending.status is TaskStatus.TIMED_OUT


async def test_events_that_cannot_leave_do_not_take_the_time_of_a_run() -> None:
    begun, there_is_room = asyncio.Event(), asyncio.Event()

    async def wait_for_room(_: StreamedEvent) -> None:
        begun.set()
        await there_is_room.wait()

    run = the_run(Asks(), timeout=0.3, on_event=wait_for_room)
    executing = asyncio.create_task(run.execute())
    async with asyncio.timeout(10):
        await begun.wait()
        await pass_(0.5)
        assert run.clock.running_seconds < 0.3
        there_is_room.set()
        await eventually(lambda: run.clock.is_waiting)
        executing.cancel()
        await asyncio.wait({executing})


class Asks(Workflow):
    """Ends a step with a question, which the library streams."""

    def __init__(self) -> None:
        super().__init__(timeout=None)

    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:  # noqa: ARG002 - as above
        return InputRequiredEvent()

    @step
    async def hear(self, ev: HumanResponseEvent) -> StopEvent:  # noqa: ARG002 - as above
        return StopEvent()


class ReturnsNothing(Workflow):
    """Its only step ends without an event."""

    @step
    async def one(self, ev: StartEvent) -> StopEvent | None:  # noqa: ARG002
        return None


class Odd(Event):
    """An event of a workflow."""


class Even(Event):
    """Another one."""


class CollectsTooMany(Workflow):
    """Waits for three events and gets two."""

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Odd | None:  # noqa: ARG002
        ctx.send_event(Odd())
        ctx.send_event(Odd())
        return None

    @step
    async def join(self, ctx: Context, ev: Odd) -> StopEvent | None:
        return None if ctx.collect_events(ev, [Odd] * 3) is None else StopEvent()


class SendsToNobody(Workflow):
    """Sends an event that no step takes."""

    @step
    async def one(self, ctx: Context, ev: StartEvent) -> StopEvent | None:  # noqa: ARG002
        ctx.send_event(Even())
        return None


class StopsAfterAnAnswer(Workflow):
    """Goes on after an answer, and then returns nothing."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent | None:  # noqa: ARG002
        await ctx.wait_for_event(Even, waiter_event=InputRequiredEvent())
        return None


DEAD_ENDS = [
    (ReturnsNothing, "step 'one' took StartEvent and returned None"),
    (CollectsTooMany, "step 'join' took Odd and returned None"),
    (SendsToNobody, "no step takes Even, the last event"),
]


@pytest.mark.parametrize(("workflow", "reason"), DEAD_ENDS)
async def test_a_run_at_a_dead_end_uses_up_its_time_limit(workflow: type[Workflow], reason: str) -> None:
    async with asyncio.timeout(10):
        outcome = await the_run(workflow(timeout=None), timeout=0.3).execute()
    assert outcome is not None
    assert outcome.status is TaskStatus.TIMED_OUT
    assert outcome.error is not None
    assert reason in outcome.error.message


@pytest.mark.parametrize(("workflow", "reason"), DEAD_ENDS)
async def test_a_run_at_a_dead_end_without_a_time_limit_fails(workflow: type[Workflow], reason: str) -> None:
    async with asyncio.timeout(10):
        outcome = await the_run(workflow(timeout=None), idle_timeout=0.1).execute()
    assert outcome is not None
    assert outcome.status is TaskStatus.FAILED
    assert outcome.error is not None
    assert reason in outcome.error.message


async def test_a_dead_end_after_an_answer_is_one() -> None:
    workflow = StopsAfterAnAnswer(timeout=None)
    asked = asyncio.Event()

    async def note(_: StreamedEvent) -> None:
        asked.set()

    inbox = inbox_of(workflow)
    run = the_run(workflow, timeout=0.5, on_event=note, inbox=inbox)
    async with asyncio.timeout(10):
        executing = asyncio.create_task(run.execute())
        await asked.wait()
        await asyncio.sleep(0.7)  # longer than the time limit: waiting does not count
        assert not executing.done()
        await inbox.put(entry_of(Even()))
        outcome = await executing
    assert outcome is not None
    assert outcome.status is TaskStatus.TIMED_OUT
    assert outcome.error is not None
    assert "step 'ask' took StartEvent and returned None" in outcome.error.message


class AsksInVain(Workflow):
    """Asks with a time limit, and gives up."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent | None:  # noqa: ARG002
        try:
            await ctx.wait_for_event(Even, waiter_event=InputRequiredEvent(), timeout=0.1)
        except TimeoutError:
            return None
        return StopEvent()


async def test_a_dead_end_after_a_question_that_timed_out_is_one() -> None:
    async with asyncio.timeout(10):
        outcome = await the_run(AsksInVain(timeout=None), timeout=0.5).execute()
    assert outcome is not None
    assert outcome.status is TaskStatus.TIMED_OUT


class TakesPlainAnswers(Workflow):
    """Asks, and takes plain events as answers, which another step may also return. Ends with the second."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Odd | None:  # noqa: ARG002
        ctx.write_event_to_stream(InputRequiredEvent())
        return None

    @step
    async def take(self, ctx: Context, ev: Odd) -> StopEvent | None:
        return None if ctx.collect_events(ev, [Odd] * 2) is None else StopEvent("both")


async def test_a_run_that_has_asked_waits_for_plain_events_too() -> None:
    workflow = TakesPlainAnswers(timeout=None)
    inbox = inbox_of(workflow)
    run = the_run(workflow, timeout=0.2, inbox=inbox)
    executing = asyncio.create_task(run.execute())
    for seq in (1, 2):
        done, _ = await asyncio.wait({executing}, timeout=0.4)
        assert not done
        await inbox.put(entry_of(Odd(), seq=seq))
    async with asyncio.timeout(10):
        outcome = await executing
    assert outcome is not None
    assert outcome.value == "both"


class AsksByReturning(Workflow):
    """A step takes the answer, and sends nothing until it comes."""

    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:  # noqa: ARG002
        return InputRequiredEvent()

    @step
    async def take(self, ev: HumanResponseEvent) -> StopEvent:  # noqa: ARG002
        return StopEvent("answered")


class SendsLater(Workflow):
    """A task that a step has left behind sends what ends the run."""

    @step
    async def one(self, ctx: Context, ev: StartEvent) -> Even | None:  # noqa: ARG002
        async def later() -> None:
            await asyncio.sleep(0.3)
            ctx.send_event(Even())

        self.later = asyncio.create_task(later())
        return None

    @step
    async def two(self, ev: Even) -> StopEvent:  # noqa: ARG002
        return StopEvent("sent later")


async def test_an_event_from_a_background_task_continues_a_run_at_a_dead_end() -> None:
    async with asyncio.timeout(10):
        outcome = await the_run(SendsLater(timeout=None), timeout=5).execute()
    assert outcome is not None
    assert outcome.value == "sent later"


async def test_a_run_that_has_asked_waits() -> None:
    run = the_run(AsksByReturning(timeout=None), timeout=0.2)
    executing = asyncio.create_task(run.execute())
    done, _ = await asyncio.wait({executing}, timeout=0.6)
    assert not done
    run.cancel()
    await executing
