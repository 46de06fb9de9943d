"""Workflow services with the real queue, the real control plane and the real workflow library."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import BaseModel
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from workflows.handler import WorkflowHandler

from llama_deploy.control_plane.direct_gateway import DirectGateway
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.errors import ConfigError, InvalidRequestError, UnavailableError
from llama_deploy.message_consumers import (
    RemoteMessageConsumer,
)
from llama_deploy.message_queues import SimpleMessageQueueConfig, SimpleMessageQueueServer
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services import (
    HttpGateway,
    WorkflowService,
    WorkflowServiceConfig,
)
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.types import (
    EventDefinition,
    SessionPolicy,
    TaskStatus,
    TaskSubmission,
    generate_id,
)
from llama_deploy.types.instance_protocol import (
    ClaimReply,
    ClaimRequest,
    Heartbeat,
    HeartbeatReply,
    ReleaseReply,
    ReleaseRequest,
)
from llama_deploy.types.state_keys import STATE_PREFIX
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.in_process import (
    PATIENCE,
    Stack,
    beats_of,
    failure_of,
    result_of,
    running_stack,
    stop,
    until,
)


class Progress(Event):
    done: int


class Greeting(StopEvent):
    text: str


class Greet(StartEvent):
    name: str
    times: int = 1


class Greeter(Workflow):
    @step
    async def greet(self, ctx: Context, ev: Greet) -> Greeting:
        for index in range(ev.times):
            ctx.write_event_to_stream(Progress(done=index))
        return Greeting(text=f"hello {ev.name}")


class Echo(Workflow):
    @step
    async def echo(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("value"))


class Counting(Workflow):
    """Begins when the test has opened the gate, if there is one."""

    gate: asyncio.Event | None = None
    begun = 0

    async def enter(self) -> None:
        self.begun += 1
        if self.gate is not None:
            await self.gate.wait()


class Counter(Counting):
    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await self.enter()
        number = await ctx.store.get("count", default=0) + 1
        await ctx.store.set("count", number)
        return StopEvent(result=number)


class Tally(BaseModel):
    names: list[str] = []


class TypedCounter(Counting):
    @step
    async def count(self, ctx: Context[Tally], ev: StartEvent) -> StopEvent:
        await self.enter()
        async with ctx.store.edit_state() as state:
            state.names.append(ev.name)
            return StopEvent(result=list(state.names))


class Unwritable(Workflow):
    """Ends with something that JSON cannot hold, in the place that it is asked for."""

    @step
    async def end(self, ctx: Context, ev: StartEvent) -> StopEvent:
        if ev.place == "event":
            ctx.write_event_to_stream(Event(handle=object()))
        if ev.place == "state":
            await ctx.store.set("open", {"files": [object()]})
        return StopEvent(result="fine")


class Ask(InputRequiredEvent):
    question: str


class Answer(HumanResponseEvent):
    text: str


class Interview(Workflow):
    """Waits for its answer in the middle of a step, after the test has opened the gate."""

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        super().__init__(timeout=30)
        self.gate = gate

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        if self.gate is not None:
            await self.gate.wait()
        answer = await ctx.wait_for_event(Answer, waiter_event=Ask(question="name?"))
        return StopEvent(result=f"hello {answer.text}")


class Steps(Workflow):
    """Waits for an answer by a step of its own."""

    @step
    async def ask(self, ev: StartEvent) -> Ask:
        return Ask(question="name?")

    @step
    async def hear(self, ev: Answer) -> StopEvent:
        return StopEvent(result=ev.text)


class Gated(Workflow):
    """Runs until the test opens its gate; counts what it has begun."""

    def __init__(self, *, timeout: float | None = 30) -> None:
        super().__init__(timeout=timeout)
        self.gate = asyncio.Event()
        self.begun: list[Any] = []
        self.most = 0
        self.now = 0

    @step(num_workers=100)
    async def wait(self, ev: StartEvent) -> StopEvent:
        self.begun.append(ev.get("number"))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
        finally:
            self.now -= 1
        return StopEvent(result=ev.get("number"))


class Stubborn(Workflow):
    def __init__(self, timeout: float | None = None) -> None:
        super().__init__(timeout=timeout)
        self.begun = asyncio.Event()
        self.release = asyncio.Event()

    @step
    async def hold(self, ev: StartEvent) -> StopEvent:
        self.begun.set()
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                continue
        return StopEvent(result="late")


class Raises(Workflow):
    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        if ev.how == "exit":
            raise SystemExit(3)
        if ev.how == "cancel":
            raise asyncio.CancelledError
        raise ValueError("no such thing")


class SyncExit(Workflow):
    @step
    def fail(self, ev: StartEvent) -> StopEvent:
        raise KeyboardInterrupt


class Own(Workflow):
    """Overrides `run`, as the prebuilt agents do."""

    def run(self, question: str, *, loud: bool = False, **kwargs: Any) -> WorkflowHandler:  # type: ignore[override]
        return super().run(start_event=StartEvent(text=question.upper() if loud else question), **kwargs)

    @step
    async def answer(self, ctx: Context, ev: StartEvent) -> StopEvent:
        number = await ctx.store.get("number", default=0) + 1
        await ctx.store.set("number", number)
        return StopEvent(result=f"{ev.text} {number}")


class Blocker(Workflow):
    @step
    async def block_the_loop(self, ev: StartEvent) -> StopEvent:
        time.sleep(ev.seconds)  # noqa: ASYNC251 - what the test is about
        return StopEvent(result="done")


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def test_a_task_runs_and_its_result_is_typed(stack: Stack) -> None:
    async with stack.serving(stack.service(Greeter())):
        view = await stack.run(name="Ada", times=3)
        assert result_of(view) == {"text": "hello Ada"}
        assert view.result is not None
        assert view.result.value_type is not None
        assert view.result.value_type.endswith(".Greeting")
        events = await stack.events(view.task_id)
        assert [(event.type, event.data.get("done")) for event in events] == [
            ("Progress", 0),
            ("Progress", 1),
            ("Progress", 2),
            ("Greeting", None),
        ]
        assert events[-1].terminal


@pytest.mark.parametrize("value", ["text", 3, 2.5, True, None, [1, "two"], {"a": {"b": None}}])
async def test_plain_results_come_back_as_they_are(stack: Stack, value: Any) -> None:
    async with stack.serving(stack.service(Echo())):
        view = await stack.run(value=value)
        assert result_of(view) == value
        assert view.result is not None
        assert view.result.value_type is None
        assert view.result.result == str(value)


async def test_arguments_may_be_wrapped_as_a_start_event(stack: Stack) -> None:
    async with stack.serving(stack.service(Greeter())):
        assert result_of(await stack.run(start_event={"name": "Ada"})) == {"text": "hello Ada"}


async def test_wrong_arguments_fail_before_anything_runs_and_name_the_fields(stack: Stack) -> None:
    async with stack.serving(stack.service(Greeter())):
        with pytest.raises(InvalidRequestError) as caught:
            await stack.submit(times="many")
        assert "name: missing, expected a string" in str(caught.value)
        assert "times: expected an integer, not 'many'" in str(caught.value)


async def test_a_workflow_with_its_own_run_is_called_by_name(stack: Stack) -> None:
    async with stack.serving(stack.service(Own())):
        session = await stack.session()
        assert result_of(await stack.run("service", session, question="why", loud=True)) == "WHY 1"
        assert result_of(await stack.run("service", session, question="why")) == "why 2"
        for arguments in ({}, {"question": "why", "ctx": {}}, {"question": "why", "run_id": "x"}):
            error_type, _ = failure_of(await stack.run(**arguments))
            assert error_type == "llama_deploy.errors.InvalidRequestError"


async def test_state_goes_on_in_another_instance_and_another_service(stack: Stack) -> None:
    session = await stack.session()
    numbers = []
    for name in ("one", "one", "two"):
        async with stack.serving(stack.service(Counter(), name)):
            numbers += [result_of(await stack.run(name, session)) for _ in range(2)]
    assert numbers == [1, 2, 3, 4, 5, 6]


async def test_typed_state_goes_on_beside_other_state(stack: Stack) -> None:
    session = await stack.session()
    async with (
        stack.serving(stack.service(TypedCounter(), "typed")),
        stack.serving(stack.service(Counter(), "plain")),
    ):
        assert result_of(await stack.run("typed", session, name="a")) == ["a"]
        assert result_of(await stack.run("plain", session)) == 1
        assert result_of(await stack.run("typed", session, name="b")) == ["a", "b"]
        assert result_of(await stack.run("plain", session)) == 2


async def test_parallel_tasks_keep_each_the_state_of_its_class(stack: Stack) -> None:
    session = await stack.session(SessionPolicy.PARALLEL)
    typed, plain = TypedCounter(), Counter()
    async with (
        stack.serving(stack.service(typed, "typed")),
        stack.serving(stack.service(plain, "plain")),
    ):
        typed.gate, plain.gate = asyncio.Event(), asyncio.Event()
        tasks = [await stack.submit("typed", session, name="a"), await stack.submit("plain", session)]
        await until(lambda: typed.begun == plain.begun == 1)
        typed.gate.set()
        plain.gate.set()
        assert [result_of(await stack.end(task)) for task in tasks] == [["a"], 1]
        assert result_of(await stack.run("typed", session, name="b")) == ["a", "b"]
        assert result_of(await stack.run("plain", session)) == 2


async def test_a_state_that_is_emptied_stays_empty_and_is_written_once(stack: Stack) -> None:
    class Emptied(Workflow):
        @step
        async def fill(self, ctx: Context, ev: StartEvent) -> StopEvent:
            before = await ctx.store.get("count", default=None)
            if ev.fill:
                await ctx.store.set("count", 5)
            else:
                await ctx.store.clear()
            return StopEvent(result=before)

    session = await stack.session()
    async with stack.serving(stack.service(Emptied())):
        results = [
            result_of(await stack.run("service", session, fill=fill)) for fill in (True, False, False, True)
        ]
    assert results == [None, 5, None, None]
    assert (await stack.stored(session)).version == 3


async def test_thirty_runs_do_not_make_the_state_grow(stack: Stack) -> None:
    session = await stack.session()

    async def size() -> int:
        return len(text_of((await stack.stored(session)).state))

    async with stack.serving(stack.service(Counter())):
        for _ in range(10):
            await stack.run("service", session)
        before = await size()
        for _ in range(30):
            await stack.run("service", session)
        assert await size() == before


async def test_a_session_without_state_is_not_written(stack: Stack) -> None:
    session = await stack.session()
    async with stack.serving(stack.service(Echo())):
        await stack.run("service", session, value=1)
    stored = await stack.stored(session)
    assert (stored.state, stored.version) == ("{}", 0)


@pytest.mark.parametrize(
    "held",
    [
        5,
        "text",
        {"_data": {"count": "not json"}},
        {
            "_data": {
                "count": json.dumps(
                    {"__is_pydantic": True, "value": {}, "qualified_name": "antigravity.Model"}
                )
            }
        },
    ],
)
async def test_state_that_cannot_be_read_fails_the_task(stack: Stack, held: Any) -> None:
    session = await stack.session()
    key = f"{STATE_PREFIX}workflows.context.state_store.DictState"
    forged = (await stack.stored(session))._replace(state=json.dumps({key: held}))
    await stack.store.transact(lambda tx: tx.sessions.update([forged]))
    async with stack.serving(stack.service(Counter())):
        error_type, message = failure_of(await stack.run("service", session))
        assert error_type == "llama_deploy.errors.SerializationError"
        assert key in message
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("event", "event Event.handle"),
        ("state", "ctx.store['open'].files[0]"),
    ],
)
async def test_what_json_cannot_hold_fails_the_task_and_is_named(stack: Stack, place: str, path: str) -> None:
    async with stack.serving(stack.service(Unwritable(), durability="step")):
        error_type, message = failure_of(await stack.run(place=place))
        assert error_type == "llama_deploy.errors.SerializationError"
        assert path in message


class Endless(Workflow):
    @step
    async def make(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.letter * 5_000_000)


@asynccontextmanager
async def serving_over(stack: Stack, workflow: Workflow, over: str) -> AsyncIterator[None]:
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="service")
    gateway = HttpGateway(stack.server.config.url) if over == "http" else stack.server.gateway()
    async with stack.serving(WorkflowService(workflow, stack.queue, config, gateway=gateway)):
        yield
    await gateway.close()


@pytest.mark.parametrize("over", ["http", "calls"])
async def test_a_result_that_is_too_large_for_the_control_plane_comes_over_the_queue(
    stack: Stack, over: str
) -> None:
    async with serving_over(stack, Endless(), over):
        assert len(result_of(await stack.run(letter="x"))) == 5_000_000


@pytest.mark.parametrize("over", ["http", "calls"])
async def test_a_result_that_is_too_large_for_the_queue_too_fails_the_task(over: str) -> None:
    async with (
        SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as queue_server,
        running_stack(queue_server.config.connect) as stack,
        serving_over(stack, Endless(), over),
    ):
        error_type, message = failure_of(await stack.run(letter="x"))
        assert error_type == "llama_deploy.errors.PayloadTooLargeError"
        assert "max_body_bytes" in message


@pytest.mark.parametrize("workflow", [Interview(), Steps()])
async def test_a_human_answers(stack: Stack, workflow: Workflow) -> None:
    service = stack.service(workflow, allowed_types=[f"{Answer.__module__}.Answer"])
    async with stack.serving(service):
        task_id = await stack.submit()
        first, *_ = await anext(await stack.plane.tasks.events(task_id))
        assert (first.type, json.loads(first.data)) == ("Ask", {"question": "name?"})
        await stack.send(task_id, Answer(text="Ada"))
        assert "Ada" in result_of(await stack.end(task_id))


async def test_an_answer_may_come_before_its_question(stack: Stack) -> None:
    gate = asyncio.Event()
    service = stack.service(Interview(gate), allowed_types=[f"{Answer.__module__}.Answer"])
    async with stack.serving(service):
        task_id = await stack.submit()
        await stack.send(task_id, Answer(text="Ada"))
        await until(lambda: any(held.inbox_seq == 1 for held in beats_of(service)[-1].held))
        gate.set()
        assert result_of(await stack.end(task_id)) == "hello Ada"


async def test_an_answer_may_come_before_the_service(stack: Stack) -> None:
    service = stack.service(Interview(), allowed_types=[f"{Answer.__module__}.Answer"])
    await service.register_to_control_plane()
    task_id = await stack.submit()
    await stack.send(task_id, Answer(text="Ada"))
    async with stack.serving(service):
        assert result_of(await stack.end(task_id)) == "hello Ada"


async def test_unknown_and_malformed_events_do_no_harm(stack: Stack) -> None:
    service = stack.service(Steps())
    async with stack.serving(service):
        task_id = await stack.submit()
        for text in (
            '{"qualified_name": "antigravity.Answer", "value": {}}',
            '{"qualified_name": "x.Answer", "value": {"text": 5}}',
        ):
            with pytest.raises(InvalidRequestError, match=r"expected a string|missing"):
                await stack.plane.tasks.send_event(task_id, EventDefinition(event_obj_str=text))
        await stack.send(task_id, Answer(text="Ada"))
        assert result_of(await stack.end(task_id)) == "Ada"
    assert "antigravity" not in sys.modules


async def test_no_more_tasks_are_taken_than_there_is_room_for(stack: Stack) -> None:
    workflow, second = Gated(), Gated()
    service = stack.service(workflow, max_concurrent_tasks=3)
    async with stack.serving(service):
        tasks = [await stack.submit(number=number) for number in range(8)]
        await until(lambda: workflow.now == 3)
        async with stack.serving(stack.service(second, max_concurrent_tasks=3)):
            await until(lambda: second.now == 3)
            workflow.gate.set()
            second.gate.set()
            numbers = [result_of(await stack.end(task_id)) for task_id in tasks]
    assert numbers == list(range(8))
    assert (workflow.most, second.most) == (3, 3)


async def test_a_running_task_is_cancelled(stack: Stack) -> None:
    workflow = Gated()
    async with stack.serving(stack.service(workflow)):
        task_id = await stack.submit()
        await until(lambda: workflow.now == 1)
        await stack.plane.tasks.cancel(task_id)
        view = await stack.end(task_id)
        assert view.status is TaskStatus.CANCELLED
        assert failure_of(view) == ("llama_deploy.errors.TaskCancelledError", "the task was cancelled")
        await until(lambda: workflow.now == 0)


async def test_a_step_that_ignores_its_cancellation_does_not_hold_the_task(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_deploy.services.run.run_ending.CANCEL_GRACE", 0.2)
    workflow = Stubborn()
    async with stack.serving(stack.service(workflow)):
        task_id = await stack.submit()
        await workflow.begun.wait()
        await stack.plane.tasks.cancel(task_id)
        assert (await stack.end(task_id)).status is TaskStatus.CANCELLED
        workflow.release.set()


async def test_a_step_that_ignores_the_time_limit_does_not_hold_the_task(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_deploy.services.run.run_ending.CANCEL_GRACE", 0.2)
    workflow = Stubborn(timeout=0.1)
    async with stack.serving(stack.service(workflow)):
        assert (await stack.run()).status is TaskStatus.TIMED_OUT
        workflow.release.set()


async def test_a_run_past_its_time_limit_is_timed_out(stack: Stack) -> None:
    async with stack.serving(stack.service(Gated(timeout=0.05))):
        view = await stack.run()
        assert view.status is TaskStatus.TIMED_OUT
        assert failure_of(view)[0] == "workflows.errors.WorkflowTimeoutError"


@pytest.mark.parametrize(
    ("workflow", "arguments", "error_type"),
    [
        (Raises(), {"how": "error"}, "builtins.ValueError"),
        (Raises(), {"how": "exit"}, "builtins.SystemExit"),
        (Raises(), {"how": "cancel"}, "asyncio.exceptions.CancelledError"),
        (SyncExit(), {}, "builtins.KeyboardInterrupt"),
    ],
)
async def test_whatever_a_step_raises_fails_its_task_only(
    stack: Stack, workflow: Workflow, arguments: dict[str, Any], error_type: str
) -> None:
    async with stack.serving(stack.service(workflow)) as task:
        view = await stack.run(**arguments)
        assert view.status is TaskStatus.FAILED
        assert failure_of(view)[0] == error_type
        assert view.result is not None
        assert view.result.error is not None
        assert "raise" in (view.result.error.traceback or "")
        assert not task.done()


async def test_raise_exceptions_reports_and_raises(stack: Stack) -> None:
    service = stack.service(Raises(), raise_exceptions=True)
    async with stack.serving(service) as task:
        view = await stack.run(how="error")
        assert failure_of(view) == ("builtins.ValueError", "no such thing")
        with pytest.raises(ValueError, match="no such thing"):
            await task


async def test_bad_messages_do_not_stop_the_service(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    service = stack.service(Echo())
    async with stack.serving(service):
        for action, data in (
            (ActionTypes.COMPLETED_TASK, {}),
            (ActionTypes.NEW_TASK, {"task_id": 5}),
            (None, {"anything": 1}),
        ):
            message = QueueMessage(action=action, data=data)
            for topic in (
                service.topics.work("service"),
                service.topics.instance("service", service.instance_id),
            ):
                await stack.queue.publish(message, topic)
        assert result_of(await stack.run(value=1)) == 1
    assert "dropped message" in caplog.text


async def test_copies_of_a_message_run_their_task_once(stack: Stack) -> None:
    """The task waits for its service so long that its message is repeated."""
    workflow = Gated()
    service = stack.service(workflow)
    await stack.plane.services.register(service.service_definition)
    task_id = await stack.submit(number=1)
    topic = service.topics.work("service")
    async with await stack.queue.subscribe(topic) as work:
        (first,) = await work.receive(1)
        await first.ack()
    for _ in range(3):
        await stack.queue.publish(first.message.model_copy(update={"id_": generate_id()}), topic)
    async with stack.serving(service):
        await until(lambda: workflow.now >= 1)
        workflow.gate.set()
        assert result_of(await stack.end(task_id)) == 1
        await stack.queue.publish(first.message.model_copy(update={"id_": generate_id()}), topic)
        assert result_of(await stack.run(number=2)) == 2
    assert workflow.begun == [1, 2]
    assert workflow.most == 1


async def test_stopping_lets_tasks_end(stack: Stack) -> None:
    workflow = Gated()
    async with stack.serving(stack.service(workflow)) as task:
        task_id = await stack.submit(number=1)
        later = [await stack.submit(number=number) for number in (2, 3)]
        await until(lambda: workflow.now == 3)
        task.cancel()
        await until(lambda: task.cancelling() > 0)
        workflow.gate.set()
        assert result_of(await stack.end(task_id)) == 1
        assert [result_of(await stack.end(item)) for item in later] == [2, 3]
    assert (await stack.plane.services.get("service")).instances == []


async def test_what_does_not_end_in_time_is_handed_back_and_runs_elsewhere(stack: Stack) -> None:
    slow, quick = Gated(), Gated()
    quick.gate.set()
    async with stack.serving(stack.service(slow, drain_timeout=0.05)) as task:
        # Handing back is no loss, so one attempt that may be lost is enough.
        submission = TaskSubmission(service_name="service", arguments={"number": 1}, max_attempts=1)
        task_id = (await stack.plane.tasks.submit(submission)).task_id
        await until(lambda: slow.now == 1)
        await stop(task)
        async with stack.serving(stack.service(quick)):
            view = await stack.end(task_id)
            assert result_of(view) == 1
            assert view.attempt == 2


async def test_a_second_cancellation_hurries(stack: Stack) -> None:
    workflow = Gated()
    async with stack.serving(stack.service(workflow, drain_timeout=3600)) as task:
        await stack.submit()
        await until(lambda: workflow.now == 1)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=0.05)
        assert not done
        await stop(task)
        assert task.done()


async def test_a_stale_attempt_is_stopped_and_reports_nothing(stack: Stack) -> None:
    """The control plane takes the task away while the instance works on it."""
    workflow, other = Gated(), Gated()
    other.gate.set()
    # Full, so that the second attempt goes to the other one.
    service = stack.service(workflow, max_concurrent_tasks=1)
    async with stack.serving(service):
        task_id = await stack.submit(number=1)
        await until(lambda: workflow.now == 1)
        async with stack.serving(stack.service(other)):
            await stack.plane.services.deregister("service")
            assert (await stack.end(task_id)).attempt == 2
            await until(lambda: workflow.now == 0)
            await until(lambda: not beats_of(service)[-1].held)

            async def known() -> bool:
                listed = (await stack.plane.services.get("service")).instances
                return service.instance_id in {item.instance_id for item in listed}

            await until(known)


async def test_outcomes_are_held_until_they_are_confirmed(stack: Stack) -> None:
    service = stack.service(Echo())
    async with stack.serving(service):
        await stack.run(value=1)
        await until(lambda: any(beat.held for beat in beats_of(service)))
        await until(lambda: not beats_of(service)[-1].held)


async def test_a_blocked_loop_is_reported_with_the_step(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="llama_deploy.services.worker.heartbeat")
    async with stack.serving(stack.service(Blocker())):
        assert result_of(await stack.run(seconds=3.0)) == "done"
        await until(lambda: "is free again" in caplog.text)
    assert "block_the_loop" in caplog.text


class Sleeper(Workflow):
    @step
    async def sleep(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(ev.seconds)
        return StopEvent()


class Listening(HttpGateway):
    """Keeps the heartbeats that it sends."""

    def __init__(self, control_plane_url: str) -> None:
        super().__init__(control_plane_url)
        self.beats: list[Heartbeat] = []

    def beat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        self.beats.append(heartbeat)
        return super().beat(heartbeat)


async def test_heartbeats_tell_capacity_and_load(stack: Stack) -> None:
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="service", max_concurrent_tasks=3)
    gateway = Listening(stack.server.config.url)
    async with stack.serving(WorkflowService(Sleeper(), stack.queue, config, gateway=gateway)):
        await stack.submit(seconds=1.0)
        await until(lambda: gateway.beats[-1].running == 1)
        await until(lambda: gateway.beats[-1].running == 0)
    await gateway.close()
    assert {beat.slots for beat in gateway.beats} <= {3, 0}
    assert {beat.blocked_seconds for beat in gateway.beats} == {0.0}


async def test_an_instance_that_stops_tells_that_it_takes_no_more_tasks(stack: Stack) -> None:
    service = stack.service(Sleeper(), drain_timeout=20)
    async with stack.serving(service) as working:
        task_id = await stack.submit(seconds=1.0)
        await until(lambda: beats_of(service)[-1].running == 1)
        assert beats_of(service)[-1].slots == 8
        working.cancel()
        await until(lambda: beats_of(service)[-1].slots == 0)
        assert (await stack.end(task_id)).status is TaskStatus.SUCCEEDED


class Noting(Workflow):
    def __init__(self) -> None:
        super().__init__()
        self.begun = 0

    @step
    async def note(self, ev: StartEvent) -> StopEvent:
        self.begun += 1
        return StopEvent(result="done")


class Paused(DirectGateway):
    """Keeps answers to claims back, by attempt, and sends no heartbeats until it wakes up."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(plane)
        self.granted = asyncio.Event()
        self.answers = {1: asyncio.Event(), 2: asyncio.Event()}
        self.is_awake = False
        self.answered: list[HeartbeatReply] = []

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        if request.attempt > 1:
            await self.answers[request.attempt].wait()
            return await super().claim(request)
        reply = await super().claim(request)
        self.granted.set()
        await self.answers[request.attempt].wait()
        return reply

    def beat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        if heartbeat.claiming and not self.is_awake:
            raise UnavailableError("paused")
        reply = super().beat(heartbeat)
        if self.is_awake:
            self.answered.append(reply)
        return reply


async def test_an_answer_to_a_claim_that_is_read_after_a_pause_begins_nothing(stack: Stack) -> None:
    workflow, gateway = Noting(), Paused(stack.plane)
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="service")
    async with stack.serving(WorkflowService(workflow, stack.queue, config, gateway=gateway)):
        task_id = await stack.submit()
        await gateway.granted.wait()

        async def is_lost() -> bool:
            return (await stack.plane.tasks.get(task_id)).attempt == 2

        await until(is_lost)
        gateway.is_awake = True
        for attempt, answer in gateway.answers.items():
            count = len(gateway.answered)
            await until(lambda count=count: len(gateway.answered) > count + 1)
            assert workflow.begun == 0, f"before attempt {attempt}"
            answer.set()
        assert result_of(await stack.end(task_id)) == "done"
        assert workflow.begun == 1


async def test_over_http_in_either_order_with_the_real_port(stack: Stack) -> None:
    for register_first in (True, False):
        config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name=f"http{register_first}")
        service = WorkflowService(Echo(), stack.queue, config)
        if register_first:
            await service.register_to_control_plane(stack.server.config.url)
        task = asyncio.create_task(service.launch_server())
        await service.wait_listening()
        http = HttpConnection(service.url)
        message = QueueMessage(
            action=ActionTypes.NEW_TASK,
            data={"task_id": "t", "session_id": "s", "agent_id": "a", "input": "{}", "attempt": 1},
        )
        request = HttpRequest("POST", "/process_message", json=message.to_wire())
        if not register_first:
            with pytest.raises(UnavailableError, match="register_to_control_plane"):
                await http.request(request)
            await service.register_to_control_plane(stack.server.config.url)
        view = await stack.run(config.service_name, value="over http")
        assert result_of(view) == "over http"
        listed = (await stack.plane.services.get(config.service_name)).instances
        assert [item.port for item in listed] == [int(service.url.rpartition(":")[2])]
        assert (await http.request(HttpRequest("GET", "/")))["type"] == "workflow_service"
        assert await http.request(HttpRequest("GET", "/health")) == {"status": "ok"}
        with pytest.raises(InvalidRequestError):
            await http.request(HttpRequest("POST", "/process_message", json={"nonsense": 1}))
        assert await http.request(request) is None, "a claim that is refused is done with"
        await http.close()
        await stop(task)
        await task


async def test_the_gateway_over_http(stack: Stack) -> None:
    gateway = HttpGateway(stack.server.config.url)
    try:
        session = await stack.session()
        await gateway.update_session_state(session, {"a": 1})
        state = await gateway.get_session_state(session)
        assert state == {"a": 1}
        assert await gateway.get_session_state("no such session") is None
    finally:
        await gateway.close()


async def test_session_state_needs_a_control_plane(stack: Stack) -> None:
    service = WorkflowService(Echo(), stack.queue, WorkflowServiceConfig(host="127.0.0.1", port=0))
    with pytest.raises(ConfigError, match="register_to_control_plane"):
        await service.get_session_state("any")
    with pytest.raises(ConfigError, match="URL"):
        await service.register_to_control_plane()


async def test_a_step_calls_another_service(stack: Stack) -> None:
    class Caller(Workflow):
        @step
        async def call(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=result_of(await stack.run("echo", value="through")))

    async with stack.serving(stack.service(Echo(), "echo")), stack.serving(stack.service(Caller())):
        assert result_of(await stack.run()) == "through"


async def test_many_events_arrive_in_order(stack: Stack) -> None:
    async with stack.serving(stack.service(Greeter())):
        view = await stack.run(name="Ada", times=1000)
        events = await stack.events(view.task_id)
        assert [event.data["done"] for event in events[:-1]] == list(range(1000))


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # The library looks at deprecated names of pydantic.
async def test_a_workflow_of_llama_index_and_its_prebuilt_agents(stack: Stack) -> None:
    core = pytest.importorskip("llama_index.core.workflow")
    agents = pytest.importorskip("llama_index.core.agent.workflow")
    llms = pytest.importorskip("llama_index.core.llms")

    class Classic(core.Workflow):  # type: ignore[misc, name-defined]
        @core.step  # type: ignore[untyped-decorator]
        async def only(self, ev: core.StartEvent) -> core.StopEvent:  # type: ignore[name-defined]
            return core.StopEvent(result=f"hello {ev.name}")

    agent = agents.ReActAgent(tools=[], llm=llms.MockLLM(max_tokens=3), streaming=False)
    async with (
        stack.serving(stack.service(Classic(), "classic")),
        stack.serving(stack.service(agent, "agent")),
    ):
        assert result_of(await stack.run("classic", name="Ada")) == "hello Ada"
        session = await stack.session()
        for arguments in ({"user_msg": "hi"}, {"start_event": {"user_msg": "hi"}}):
            view = await stack.run("agent", session, **arguments)
            assert result_of(view)["response"]["role"] == "assistant"
            assert view.result is not None
            assert view.result.value_type is not None
            assert view.result.value_type.endswith(".AgentOutput")


@pytest.mark.parametrize("remote", [False, True])
async def test_the_consumer_of_a_workflow_service_takes_real_messages(stack: Stack, *, remote: bool) -> None:
    workflow = Gated()
    service = stack.service(workflow)
    await service.register_to_control_plane()
    async with (
        await stack.queue.subscribe(service.topics.work("service")) as work,
        await stack.queue.subscribe(
            service.topics.instance("service", service.instance_id), group="copies"
        ) as copies,
    ):
        task_id = await stack.submit()
        (offered,) = await work.receive(1)
        await offered.ack()
        serving = asyncio.create_task(service.launch_server())
        await service.wait_listening()
        consumer = service.as_consumer(remote=remote)
        try:
            await consumer.process_message(offered.message)
            await until(lambda: workflow.now == 1)
            await stack.plane.tasks.cancel(task_id)
            (cancellation,) = await copies.receive(1)
            await consumer.process_message(cancellation.message)
            assert (await stack.end(task_id)).status is TaskStatus.CANCELLED
        finally:
            if isinstance(consumer, RemoteMessageConsumer):
                await consumer.close()
            await stop(serving)


async def test_the_consumer_of_the_control_plane_takes_real_messages(stack: Stack) -> None:
    topic = stack.plane.topics.control_plane
    async with (
        await stack.queue.subscribe(topic, group="copies") as copies,
        stack.serving(stack.service(Greeter())),
    ):
        await stack.run(name="Ada", times=1000)
        consumer, last = stack.server.as_consumer(), None
        while last is not ActionTypes.COMPLETED_TASK:
            for delivery in await copies.receive(10):
                last = delivery.message.action
                await consumer.process_message(delivery.message)


async def test_consuming_lasts_from_before_the_launch_until_the_service_stops(stack: Stack) -> None:
    service = stack.service(Echo())
    consuming = asyncio.create_task((await service.register_to_message_queue())())
    async with stack.serving(service):
        assert result_of(await stack.run(value=1)) == 1
        assert not consuming.done()
    await asyncio.wait_for(consuming, PATIENCE)
    await asyncio.wait_for((await service.register_to_message_queue())(), PATIENCE)


async def test_deregistering_ends_consuming_and_not_the_service(stack: Stack) -> None:
    service = stack.service(Echo())
    async with stack.serving(service):
        consuming = asyncio.create_task((await service.register_to_message_queue())())
        for _ in range(2):
            await service.deregister_from_message_queue()
        await asyncio.wait_for(consuming, PATIENCE)
        assert result_of(await stack.run(value=1)) == 1


async def test_handing_back_that_fails_is_a_warning(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(DirectGateway):
        async def release(self, request: ReleaseRequest) -> ReleaseReply:
            raise UnavailableError("nobody answers")

    workflow = Gated()
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="service", drain_timeout=0.05)
    service = WorkflowService(workflow, stack.queue, config, gateway=Broken(stack.plane))
    async with stack.serving(service):
        await stack.submit()
        await until(lambda: workflow.now == 1)
    (record,) = [record for record in caplog.records if getattr(record, "action", "") == "release"]
    assert record.levelno == logging.WARNING
    assert "nobody answers" in record.getMessage()
