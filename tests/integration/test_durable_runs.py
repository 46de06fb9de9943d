"""Runs that are written down step by step: what goes on where, and what a value must be for it."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from llama_deploy import workflow_library
from llama_deploy.control_plane.direct_gateway import DirectGateway
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.errors import PayloadTooLargeError
from llama_deploy.services import HttpGateway, WorkflowService, WorkflowServiceConfig
from llama_deploy.services.run.journal import journal_backlog as journal
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import EventDefinition, TaskStatus
from llama_deploy.types.instance_protocol import JournalReply, JournalWrite
from tests.integration.in_process import Stack, beats_of, failure_of, result_of, running_stack


class Note(BaseModel):
    text: str
    at: dt.datetime


class Second(Event):
    notes: list[Note]
    marks: set[str]


class Third(Event):
    value: Any


class ThreeSteps(Workflow):
    """Its third step ends when the gate is open."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.gate = asyncio.Event()
        self.begun: list[str] = []

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Second:
        self.begun.append("first")
        ctx.write_event_to_stream(Event(step="first"))
        note = Note(text="seen", at=dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
        await ctx.store.set("marks", {"a", "b"})
        return Second(notes=[note], marks={"x"})

    @step
    async def second(self, ctx: Context, ev: Second) -> Third:
        self.begun.append("second")
        ctx.write_event_to_stream(Event(step="second"))
        async with ctx.store.edit_state() as state:
            state["count"] = state.get("count", 0) + 1
        return Third(value=(ev.notes[0], frozenset(ev.marks)))

    @step
    async def third(self, ctx: Context, ev: Third) -> StopEvent:
        self.begun.append("third")
        ctx.write_event_to_stream(Event(step="third"))
        await self.gate.wait()
        note, marks = ev.value
        kept = sorted(await ctx.store.get("marks"))
        return StopEvent(result=[note.text, note.at.year, sorted(marks), kept, await ctx.store.get("count")])


class Ask(InputRequiredEvent):
    question: str


class Answer(HumanResponseEvent):
    text: str


class AskByEvent(Workflow):
    """A step ends with the question, another begins with the answer."""

    @step
    async def ask(self, ev: StartEvent) -> Ask:
        return Ask(question="name?")

    @step
    async def hear(self, ctx: Context, ev: Answer) -> StopEvent:
        return StopEvent(result=f"hello {ev.text}")


class AskInside(Workflow):
    """A step waits in its middle."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Answer, waiter_event=Ask(question="name?"))
        return StopEvent(result=f"hello {answer.text}")


class AskOften(Workflow):
    """Takes three answers in its own time."""

    @step
    async def ask(self, ev: StartEvent) -> Ask:
        return Ask(question="names?")

    @step(num_workers=1)
    async def hear(self, ctx: Context, ev: Answer) -> StopEvent | None:
        async with ctx.store.edit_state() as state:
            state["heard"] = [*state.get("heard", []), ev.text]
            heard = state["heard"]
        return StopEvent(result=heard) if len(heard) == 3 else None


class Impatient(Workflow):
    """Waits for an answer no longer than a moment."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            await ctx.wait_for_event(Answer, timeout=float(ev.seconds))
        except TimeoutError:
            return StopEvent(result="nobody answered")
        return StopEvent(result="answered")


class Prepares(Workflow):
    """Its second step waits without end."""

    @step
    async def prepare(self, ev: StartEvent) -> Third:
        return Third(value=1)

    @step
    async def ask(self, ctx: Context, ev: Third) -> StopEvent:
        answer = await ctx.wait_for_event(Answer, timeout=float("inf"))
        return StopEvent(result=answer.text)


class Slow(Workflow):
    """Waits for an answer, then works without end."""

    @step
    async def ask(self, ev: StartEvent) -> Ask:
        return Ask(question="name?")

    @step
    async def work(self, ev: Answer) -> StopEvent:
        await asyncio.Event().wait()
        return StopEvent()


class Flaky(Workflow):
    """Its second step fails twice."""

    def __init__(self, delay: float) -> None:
        super().__init__(timeout=None)
        self.begun: list[tuple[str, int]] = []
        self.failed = asyncio.Event()
        type(self).second._step_config.retry_policy = retry_policy(
            wait=wait_fixed(delay), stop=stop_after_attempt(3)
        )

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Third:
        self.begun.append(("first", 0))
        return Third(value=1)

    @step(retry_policy=retry_policy(wait=wait_fixed(0), stop=stop_after_attempt(3)))
    async def second(self, ctx: Context, ev: Third) -> StopEvent:
        number = ctx.retry_info().retry_number
        self.begun.append(("second", number))
        if number < 2:
            self.failed.set()
            raise ValueError("not yet")
        return StopEvent(result=number)


class Handle:
    """Nothing that could be written down."""


class Carries(Workflow):
    """Hands something from step to step that cannot be written down."""

    @step
    async def first(self, ev: StartEvent) -> Third:
        return Third(value={"open": [Handle()]})

    @step
    async def second(self, ev: Third) -> StopEvent:
        return StopEvent(result="fine")


class Many(Workflow):
    """Takes many steps, and waits before the last."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.gate = asyncio.Event()
        self.begun: list[int] = []

    @step
    async def begin(self, ev: StartEvent) -> Third:
        return Third(value=0)

    @step
    async def go_on(self, ctx: Context, ev: Third) -> Third | StopEvent:
        self.begun.append(ev.value)
        if ev.value == 12:
            await self.gate.wait()
            return StopEvent(result=ev.value)
        return Third(value=ev.value + 1)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def status(stack: Stack, task_id: str) -> TaskStatus:
    return (await stack.plane.tasks.get(task_id)).status


async def until_waiting(stack: Stack, task_id: str) -> None:
    async def waits() -> bool:
        return await status(stack, task_id) is TaskStatus.WAITING

    await eventually(waits)


async def test_finished_steps_do_not_run_again_elsewhere(stack: Stack) -> None:
    first, second = ThreeSteps(), ThreeSteps()
    async with stack.serving(stack.service(first, drain_timeout=0)):
        task_id = await stack.submit()
        await eventually(lambda: "third" in first.begun)
    second.gate.set()
    async with stack.serving(stack.service(second)):
        assert result_of(await stack.end(task_id)) == ["seen", 2026, ["x"], ["a", "b"], 1]
    assert second.begun == ["third"]
    events = await stack.events(task_id)
    assert [event.data.get("step") for event in events] == ["first", "second", "third", "third", None]
    assert [event.index for event in events] == list(range(5))
    assert [event.terminal for event in events] == [False] * 4 + [True]


async def test_with_durability_task_a_run_begins_anew(stack: Stack) -> None:
    first, second = ThreeSteps(), ThreeSteps()
    async with stack.serving(stack.service(first, drain_timeout=0, durability="task")):
        task_id = await stack.submit()
        await eventually(lambda: "third" in first.begun)
    second.gate.set()
    async with stack.serving(stack.service(second, durability="task")):
        result_of(await stack.end(task_id))
    assert second.begun == ["first", "second", "third"]


@pytest.mark.parametrize("workflow", [AskByEvent, AskInside])
async def test_a_run_that_waits_leaves_memory_and_comes_back(stack: Stack, workflow: type[Workflow]) -> None:
    service = stack.service(workflow(timeout=30), idle_timeout=0.05, allowed_types=[_name(Answer)])
    async with stack.serving(service):
        task_id = await stack.submit()
        await until_waiting(stack, task_id)
        earlier = len(beats_of(service))
        await eventually(lambda: any(not (beat.running or beat.held) for beat in beats_of(service)[earlier:]))
        view = await stack.plane.tasks.get(task_id)
        assert view.instance_id is None
        await stack.send(task_id, Answer(text="Ada"))
        assert result_of(await stack.end(task_id)) == "hello Ada"
    events = await stack.events(task_id)
    assert events[0].type == "Ask"


async def test_a_run_that_waits_gives_its_slot_to_others(stack: Stack) -> None:
    service = stack.service(AskByEvent(timeout=None), max_concurrent_tasks=2, idle_timeout=60)
    async with stack.serving(service):
        tasks = [await stack.submit() for _ in range(10)]
        for task_id in tasks:

            async def asked(task_id: str = task_id) -> bool:
                view = await stack.plane.tasks.get(task_id)
                return view.status in (TaskStatus.WAITING, TaskStatus.RUNNING)

            await eventually(asked)
        for task_id in tasks:
            await stack.send(task_id, Answer(text="Ada"))
        for task_id in tasks:
            assert result_of(await stack.end(task_id)) == "hello Ada"


async def test_runs_that_wait_leave_at_once_when_the_instance_stops(stack: Stack) -> None:
    service = stack.service(AskByEvent(timeout=None), idle_timeout=60, drain_timeout=60)
    async with asyncio.timeout(10):
        async with stack.serving(service):
            task_id = await stack.submit()

            async def asked() -> bool:
                return (await stack.plane.tasks.get(task_id)).status is TaskStatus.WAITING

            await eventually(asked)
        await until_waiting(stack, task_id)


async def test_a_cancellation_reaches_a_run_that_is_not_in_memory(stack: Stack) -> None:
    async with stack.serving(stack.service(AskByEvent(timeout=None), idle_timeout=0)):
        task_id = await stack.submit()
        await until_waiting(stack, task_id)
        await stack.plane.tasks.cancel(task_id)
        assert (await stack.end(task_id)).status is TaskStatus.CANCELLED


async def test_answers_are_taken_once_whenever_and_however_often_they_come(stack: Stack) -> None:
    async with stack.serving(stack.service(AskOften(timeout=None), idle_timeout=0)):
        task_id = await stack.submit()
        for text in ("a", "a", "b"):
            await _send_once(stack, task_id, text)
        await until_waiting(stack, task_id)
        await _send_once(stack, task_id, "b")
        await _send_once(stack, task_id, "c")
        assert result_of(await stack.end(task_id)) == ["a", "b", "c"]


async def test_an_early_answer_outlives_its_instance(stack: Stack) -> None:
    first, second = Gated(), Gated()
    types = [_name(Answer)]
    async with stack.serving(stack.service(first, drain_timeout=0, allowed_types=types)):
        task_id = await stack.submit()
        await eventually(lambda: first.begun)
        await stack.send(task_id, Answer(text="early"))
    second.gate.set()
    async with stack.serving(stack.service(second, allowed_types=types)):
        assert result_of(await stack.end(task_id)) == "early"


class Gated(Workflow):
    """Asks when its gate is open."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.gate = asyncio.Event()
        self.begun = False

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.begun = True
        await self.gate.wait()
        return StopEvent(result=(await ctx.wait_for_event(Answer)).text)


async def test_a_wait_with_an_end_ends_outside_memory(stack: Stack) -> None:
    service = stack.service(Impatient(timeout=None), idle_timeout=0, allowed_types=[_name(Answer)])
    async with stack.serving(service):
        begun = time.monotonic()
        task_id = await stack.submit(seconds=1.0)
        await until_waiting(stack, task_id)
        assert result_of(await stack.end(task_id)) == "nobody answered"
        assert 0.9 < time.monotonic() - begun < 20


@pytest.mark.parametrize("seconds", ["inf", 1e300])
async def test_a_wait_without_an_end_in_sight_is_over_with_its_answer(
    stack: Stack, seconds: float | str
) -> None:
    service = stack.service(Impatient(timeout=None), idle_timeout=0, allowed_types=[_name(Answer)])
    async with stack.serving(service):
        task_id = await stack.submit(seconds=seconds)
        await until_waiting(stack, task_id)
        await stack.send(task_id, Answer(text="at last"))
        assert result_of(await stack.end(task_id)) == "answered"


async def test_waiting_does_not_count_as_running(stack: Stack) -> None:
    async with stack.serving(stack.service(Slow(timeout=0.5), idle_timeout=0)):
        task_id = await stack.submit()
        await until_waiting(stack, task_id)
        with pytest.raises(TimeoutError):
            await eventually(lambda: False, seconds=0.7)
        assert await status(stack, task_id) is TaskStatus.WAITING
        await stack.send(task_id, Answer(text="go"))
        view = await stack.end(task_id)
        assert view.status is TaskStatus.TIMED_OUT
        assert "0.5" in failure_of(view)[1]


async def test_retries_go_on_with_their_numbers_and_delays(stack: Stack) -> None:
    first, second = Flaky(delay=0.5), Flaky(delay=0.5)
    async with stack.serving(stack.service(first, drain_timeout=0)):
        task_id = await stack.submit()
        await eventually(first.failed.is_set)

        async def written() -> bool:
            tasks = await stack.store.read(lambda tx: tx.tasks.load([task_id]))
            return tasks[task_id].journal_length >= 2

        await eventually(written)
    async with stack.serving(stack.service(second)):
        assert result_of(await stack.end(task_id)) == 2
    assert first.begun == [("first", 0), ("second", 0)]
    assert second.begun == [("second", 1), ("second", 2)]


async def test_what_cannot_be_written_down_fails_the_task_and_is_named(stack: Stack) -> None:
    async with stack.serving(stack.service(Carries(timeout=None), durability="step")):
        error_type, message = failure_of(await stack.run())
    assert error_type == "llama_deploy.errors.SerializationError"
    assert "Third.value.open[0] is a" in message
    async with stack.serving(stack.service(Carries(timeout=None), durability="task")):
        assert result_of(await stack.run()) == "fine"


class Talks(Workflow):
    """Streams many events in one step."""

    @step
    async def talk(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for number in range(ev.count):
            ctx.write_event_to_stream(Event(number=number))
            if number % 100 == 0:
                await asyncio.sleep(0)
        return StopEvent(result=ev.count)


async def test_a_step_may_stream_more_than_is_kept(stack: Stack) -> None:
    async with stack.serving(stack.service(Talks(timeout=None))):
        task_id = await stack.submit(count=12_000)
        assert result_of(await stack.end(task_id)) == 12_000
    events = await stack.events(task_id)
    assert [event.data.get("number") for event in events[:-1]] == list(range(12_000))


class Burden(Workflow):
    """Collects much, piece by piece, and then waits."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Third:
        return Third(value=[ev.count, "x" * ev.size])

    @step(num_workers=1)
    async def keep(self, ctx: Context, ev: Third) -> Third | Ask:
        ctx.collect_events(ev, [Third] * 1000)
        left, piece = ev.value
        return Third(value=[left - 1, piece]) if left > 1 else Ask(question="go?")

    @step
    async def hear(self, ev: Answer) -> StopEvent:
        return StopEvent(result=ev.text)


class Refused(HttpGateway):
    """Notes that a journal write was too large."""

    refused = False

    async def journal(self, write: JournalWrite) -> JournalReply:
        try:
            return await super().journal(write)
        except PayloadTooLargeError:
            self.refused = True
            raise


async def test_a_run_that_is_too_large_to_leave_stays_in_memory() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTROL_PLANE_MAX_BODY_BYTES", str(200_000))
        async with running_stack() as stack:
            config = WorkflowServiceConfig(
                host="127.0.0.1", port=0, service_name="service", idle_timeout=0.05, drain_timeout=0
            )
            gateway = Refused(stack.server.config.url)
            service = WorkflowService(Burden(timeout=None), stack.queue, config, gateway=gateway)
            async with stack.serving(service):
                task_id = await stack.submit(count=20, size=15_000)

                await eventually(lambda: gateway.refused)
                await stack.send(task_id, Answer(text="on"))
                assert result_of(await stack.end(task_id)) == "on"


async def test_a_long_journal_is_folded_by_its_size(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "COMPACT_AFTER_CHARACTERS", 1_000)
    first, second = Many(), Many()
    async with stack.serving(stack.service(first, drain_timeout=0)):
        task_id = await stack.submit()
        await eventually(lambda: 12 in first.begun)
        entries = await stack.store.read(lambda tx: tx.runs.load_journal([task_id]))
        assert len(entries) < 12
    second.gate.set()
    async with stack.serving(stack.service(second)):
        assert result_of(await stack.end(task_id)) == 12
    assert second.begun == [12]


async def test_a_run_that_was_written_down_is_so_until_its_end(stack: Stack) -> None:
    types = [_name(Answer)]
    first = stack.service(Impatient(timeout=None), idle_timeout=0, allowed_types=types)
    async with stack.serving(first):
        task_id = await stack.submit(seconds=1.0)
        await until_waiting(stack, task_id)
    second = stack.service(Impatient(timeout=None), durability="task", allowed_types=types)
    async with stack.serving(second):
        assert result_of(await stack.end(task_id)) == "nobody answered"


async def test_another_workflow_does_not_go_on_with_a_run(stack: Stack) -> None:
    first = ThreeSteps()
    async with stack.serving(stack.service(first, drain_timeout=0)):
        task_id = await stack.submit()
        await eventually(lambda: "third" in first.begun)
    async with stack.serving(stack.service(Carries(timeout=None))):

        async def is_stranded() -> bool:
            return "step 'third'" in str((await stack.plane.tasks.get(task_id)).stranded)

        await eventually(is_stranded)
    assert first.begun == ["first", "second", "third"]


async def test_what_is_handed_back_goes_on_with_another_version_of_the_library(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ThreeSteps(), ThreeSteps()
    async with stack.serving(stack.service(first, drain_timeout=0)):
        task_id = await stack.submit()
        await eventually(lambda: "third" in first.begun)
    monkeypatch.setattr(workflow_library, "library_version", lambda: "2.99.0")
    second.gate.set()
    async with stack.serving(stack.service(second)):
        assert result_of(await stack.end(task_id))[-1] == 1
    assert second.begun == ["third"]


class Silent(DirectGateway):
    """Answers no journal write once it is silent."""

    silent = False

    async def journal(self, write: JournalWrite) -> JournalReply:
        if self.silent:
            await asyncio.Event().wait()
        return await super().journal(write)


class Noting(DirectGateway):
    """Notes what journal writes tell of ended steps."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(plane)
        self.ended: list[bool] = []

    async def journal(self, write: JournalWrite) -> JournalReply:
        self.ended.append(write.step_ended)
        return await super().journal(write)


def served_by(stack: Stack, workflow: Workflow, gateway: DirectGateway, **settings: Any) -> WorkflowService:
    """Return a service that reaches the control plane by `gateway`."""
    config = WorkflowServiceConfig(
        host="127.0.0.1", port=0, service_name="service", drain_timeout=0, **settings
    )
    return WorkflowService(workflow, stack.queue, config, gateway=gateway)


async def test_a_write_tells_whether_a_step_has_ended(stack: Stack) -> None:
    gateway = Noting(stack.plane)
    async with stack.serving(served_by(stack, Flaky(delay=0), gateway)):
        assert result_of(await stack.run()) == 2
    # The second step fails twice, and what ends the run travels with the outcome.
    assert gateway.ended == [True, False, False]


async def test_a_question_and_its_answer_are_no_ends_of_steps(stack: Stack) -> None:
    gateway = Noting(stack.plane)
    async with stack.serving(
        served_by(stack, Prepares(timeout=None), gateway, allowed_types=[_name(Answer)])
    ):
        task_id = await stack.submit()
        await eventually(lambda: len(gateway.ended) == 2)
        await stack.send(task_id, Answer(text="yes"))
        assert result_of(await stack.end(task_id)) == "yes"
    assert gateway.ended == [True, False, False]


async def test_a_snapshot_tells_whether_a_step_has_ended(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "COMPACT_AFTER_TICKS", 1)
    workflow, gateway = Many(), Noting(stack.plane)
    workflow.gate.set()
    async with stack.serving(served_by(stack, workflow, gateway)):
        assert result_of(await stack.run()) == 12
    assert gateway.ended == [True] * 13


async def test_an_endless_wait_that_was_only_journalled_goes_on_elsewhere(stack: Stack) -> None:
    gateway, types = Silent(stack.plane), [_name(Answer)]
    async with stack.serving(served_by(stack, Prepares(timeout=None), gateway, allowed_types=types)):
        task_id = await stack.submit()

        async def written() -> bool:
            tasks = await stack.store.read(lambda tx: tx.tasks.load([task_id]))
            return tasks[task_id].journal_length == 2

        await eventually(written)
        gateway.silent = True
    async with stack.serving(stack.service(Prepares(timeout=None), allowed_types=types)):
        await stack.send(task_id, Answer(text="at last"))
        assert result_of(await stack.end(task_id)) == "at last"


async def test_a_run_that_cannot_be_written_down_is_handed_back_all_the_same(stack: Stack) -> None:
    workflow, gateway = ThreeSteps(), Silent(stack.plane)
    service = served_by(stack, workflow, gateway)
    async with stack.serving(service):
        task_id = await stack.submit()
        await eventually(lambda: "third" in workflow.begun)
        gateway.silent = True
    view = await stack.plane.tasks.get(task_id)
    assert (view.status, view.attempt) == (TaskStatus.QUEUED, 2)


async def test_a_long_journal_is_folded(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "COMPACT_AFTER_TICKS", 6)
    first, second = Many(), Many()
    async with stack.serving(stack.service(first, drain_timeout=0)):
        task_id = await stack.submit()
        await eventually(lambda: 12 in first.begun)
        entries = await stack.store.read(lambda tx: tx.runs.load_journal([task_id]))
        assert len(entries) < 6
    second.gate.set()
    async with stack.serving(stack.service(second)):
        assert result_of(await stack.end(task_id)) == 12
    assert first.begun == list(range(13))
    assert second.begun == [12]


async def test_only_what_was_signed_is_gone_on_with(stack: Stack) -> None:
    old, new = SecretStr("the old key of the service"), SecretStr("the new key of the service")
    first, second = ThreeSteps(), ThreeSteps()
    async with stack.serving(stack.service(first, drain_timeout=0, state_keys=[old])):
        session_id = await stack.session()
        kept = await stack.submit("service", session_id)
        await eventually(lambda: "third" in first.begun)
        lost = await stack.submit()
        await eventually(lambda: first.begun.count("third") == 2)
    second.gate.set()
    async with stack.serving(stack.service(second, state_keys=[new, old], max_concurrent_tasks=1)):
        assert result_of(await stack.end(kept))[-1] == 1
        assert result_of(await stack.run("service", session_id))[-1] == 2
        result_of(await stack.end(lost))
    async with stack.serving(stack.service(ThreeSteps(), state_keys=[SecretStr("the key of a stranger")])):
        error_type, message = failure_of(await stack.run("service", session_id))
    assert error_type == "llama_deploy.errors.SignatureError"
    assert "stranger" not in message


async def test_nothing_of_a_run_is_left_when_it_has_ended(stack: Stack) -> None:
    workflow = ThreeSteps()
    workflow.gate.set()
    async with stack.serving(stack.service(workflow)):
        view = await stack.run()
        result_of(view)
        left = await stack.store.read(
            lambda tx: (tx.runs.load_journal([view.task_id]), tx.runs.load([view.task_id]))
        )
    assert not any(left)


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


async def _send_once(stack: Stack, task_id: str, text: str) -> None:
    definition = EventDefinition(
        event_obj_str=f'{{"type": "Answer", "value": {{"text": "{text}"}}}}', idempotency_key=text
    )
    await stack.plane.tasks.send_event(task_id, definition)
