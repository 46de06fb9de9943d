"""Hooks surround what client, control plane and worker do with a task, in their order."""

# ruff: noqa: ARG002 - the library finds a step's event by its annotation, and hooks may ignore their call

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import (
    Client,
    ControlPlaneConfig,
    ControlPlaneServer,
    WorkflowService,
    WorkflowServiceConfig,
)
from llama_deploy.control_plane.told_tasks import tell_losses
from llama_deploy.errors import (
    ClosedError,
    ConfigError,
    InvalidRequestError,
    OverloadedError,
    TaskFailedError,
)
from llama_deploy.interceptors import (
    AcceptCall,
    AttemptCall,
    AttemptLoss,
    ClientInterceptor,
    ControlPlaneInterceptor,
    DispatchCall,
    PublishCall,
    StepCall,
    SubmitCall,
    TaskEnd,
    WorkerInterceptor,
    hooks_of,
)
from llama_deploy.message_queues.simple import LocalMessageQueue
from llama_deploy.messages import ActionTypes
from llama_deploy.services import AnyWorkflow
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.records import NOW, a_task
from llama_deploy.types import SessionOptions, TaskStatus, TaskSubmission
from llama_deploy.types.owners import Owner
from llama_deploy.types.task_lists import TaskFilter

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Adder(Workflow):
    @step
    async def add(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.a + ev.b)


class InThread(Workflow):
    @step
    def add(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.a + ev.b)


class Asks(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent()

    @step
    async def hear(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


class OfClient(ClientInterceptor):
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.calls: list[SubmitCall] = []

    @contextmanager
    def submit(self, call: SubmitCall) -> Iterator[None]:
        self.calls.append(call)
        self.log.append("client begins")
        call.headers["traceparent"] = TRACE
        try:
            yield
        finally:
            self.log.append(f"client ends: {None if call.view is None else call.view.status}")


class OfControlPlane(ControlPlaneInterceptor):
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.accepted: list[AcceptCall] = []
        self.dispatched: list[DispatchCall] = []
        self.ends: list[TaskEnd] = []

    @contextmanager
    def submit(self, call: AcceptCall) -> Iterator[None]:
        self.accepted.append(call)
        yield
        self.log.append(f"accepted: {call.status}")

    @contextmanager
    def dispatch(self, call: DispatchCall) -> Iterator[None]:
        self.dispatched.append(call)
        call.message.headers["note"] = f"attempt {call.message.data['attempt']}"
        yield
        self.log.append("dispatched")

    def ended(self, end: TaskEnd) -> None:
        self.ends.append(end)
        self.log.append(f"ended: {end.status}")


class OfWorker(WorkerInterceptor):
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.attempts: list[AttemptCall] = []
        self.steps: list[StepCall] = []
        self.published: list[PublishCall] = []

    @contextmanager
    def attempt(self, call: AttemptCall) -> Iterator[None]:
        self.attempts.append(call)
        self.log.append("attempt begins")
        yield
        self.log.append(f"attempt ends: {call.status}")

    @contextmanager
    def step(self, call: StepCall) -> Iterator[None]:
        self.steps.append(call)
        self.log.append(f"step {call.step_name}")
        yield

    @contextmanager
    def publish(self, call: PublishCall) -> Iterator[None]:
        self.published.append(call)
        yield


@asynccontextmanager
async def running(workflow: AnyWorkflow, **options: Any) -> AsyncIterator[str]:
    """Run a service as `serving` does; yield the URL of its control plane."""
    async with serving(workflow, **options) as server:
        yield server.config.url


@asynccontextmanager
async def serving(
    workflow: AnyWorkflow,
    *,
    plane: tuple[ControlPlaneInterceptor, ...] = (),
    worker: tuple[WorkerInterceptor, ...] = (),
    **settings: Any,
) -> AsyncIterator[ControlPlaneServer]:
    """Run a service with hooks; yield its control plane."""
    async with (
        await LocalMessageQueue.start() as queue,
        await open_state_store("sqlite:///:memory:") as store,
        ControlPlaneServer(
            queue, state_store=store, config=ControlPlaneConfig(port=0), interceptors=plane
        ) as server,
    ):
        config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="service", **settings)
        service = WorkflowService(workflow, queue, config, gateway=server.gateway(), interceptors=worker)
        await service.register_to_control_plane()
        launched = await service.launch_local()
        try:
            yield server
        finally:
            launched.cancel()
            await asyncio.wait({launched})


@pytest.mark.parametrize("workflow", [Adder, InThread])
async def test_the_hooks_see_a_task_from_submission_to_end(workflow: type[Workflow]) -> None:
    log: list[str] = []
    client_hooks, plane, worker = OfClient(log), OfControlPlane(log), OfWorker(log)
    async with (
        running(workflow, plane=(plane,), worker=(worker,)) as url,
        Client(url, interceptors=[client_hooks]) as client,
    ):
        assert await client.run("service", a=1, b=2) == 3
        await eventually(lambda: "attempt ends: succeeded" in log, seconds=60)
    order = ["client begins", "accepted: queued", "attempt begins", "step add", "ended: succeeded"]
    places = [log.index(each) for each in [*order, "client ends: succeeded"]]
    assert places == sorted(places)
    (call,) = client_hooks.calls
    assert call.waits
    (end,) = plane.ends
    assert (end.task_id, end.service_name, end.attempts) == (call.submission.task_id, "service", 1)
    assert end.started_at is not None
    assert end.finished_at is not None
    (attempt,) = worker.attempts
    assert attempt.task.task_id == call.submission.task_id
    (taken,) = worker.steps
    assert taken.task == attempt.task
    assert [each.message.action for each in worker.published] == [ActionTypes.COMPLETED_TASK]


async def test_the_hooks_of_the_control_plane_say_whose_the_task_is() -> None:
    """A task belongs to the subject of its session, whoever submits it."""
    plane, zoe = OfControlPlane([]), Owner("acme", "zoe")
    async with serving(Adder, plane=(plane,)) as server:
        session_id = await server.plane.sessions.create(SessionOptions(), owner=zoe)
        for number, (session, subject) in enumerate(((session_id, None), (None, "yan"), (None, None))):
            submission = TaskSubmission(service_name="service", arguments={"a": 1, "b": 2})
            keys = {"task_id": zoe.key_of(f"t{number}"), "session_id": session}
            submission = submission.model_copy(update=keys)
            await server.plane.tasks.submit(submission, subject=subject, wait=60)
        await eventually(lambda: len(plane.ends) == 3, seconds=60)
    owners = [("acme", "zoe"), ("acme", "yan"), ("acme", None)]
    assert [(call.tenant, call.subject) for call in plane.accepted] == owners
    assert [(end.tenant, end.subject) for end in plane.ends] == owners


def test_a_loss_says_whose_the_task_is() -> None:
    losses: list[AttemptLoss] = []
    task = a_task()._replace(tenant="acme", subject="zoe")
    tell_losses([losses.append], [(task, task)], at=NOW)
    assert [(loss.tenant, loss.subject) for loss in losses] == [("acme", "zoe")]


async def test_the_trace_of_a_request_travels_to_the_attempt() -> None:
    log: list[str] = []
    client_hooks, plane, worker = OfClient(log), OfControlPlane(log), OfWorker(log)
    async with (
        running(Adder, plane=(plane,), worker=(worker,)) as url,
        Client(url, interceptors=[client_hooks]) as client,
    ):
        task = await client.submit("service", a=1, b=2)
        await task.result()
        await task.retry(from_="start")
        await eventually(lambda: len(worker.attempts) == 2, seconds=60)
    assert [call.trace for call in plane.accepted] == [TRACE, None]
    assert dict(worker.attempts[0].headers) == {"traceparent": TRACE, "note": "attempt 1"}
    # The retry was requested in no trace.
    assert "traceparent" not in worker.attempts[1].headers


async def test_the_threads_of_the_client_without_await_have_the_same_hooks() -> None:
    client_hooks = OfClient([])
    async with running(Adder) as url, Client(url, interceptors=[client_hooks]) as client:
        assert await asyncio.to_thread(client.sync.run, "service", a=1, b=2) == 3
    assert [call.view and call.view.status for call in client_hooks.calls] == [TaskStatus.SUCCEEDED]


async def test_hooks_are_entered_from_the_outside_in_and_left_again() -> None:
    log: list[str] = []

    class Named(WorkerInterceptor):
        def __init__(self, name: str) -> None:
            self.name = name

        @contextmanager
        def step(self, call: StepCall) -> Iterator[None]:
            log.append(f"{self.name} begins")
            yield
            log.append(f"{self.name} ends")

    async with running(Adder, worker=(Named("outer"), Named("inner"))) as url, Client(url) as client:
        await client.run("service", a=1, b=2)
    assert log == ["outer begins", "inner begins", "inner ends", "outer ends"]


async def test_a_control_plane_hook_refuses_a_task() -> None:
    class Full(ControlPlaneInterceptor):
        @contextmanager
        def submit(self, call: AcceptCall) -> Iterator[None]:
            raise InvalidRequestError(f"no {call.service_name} today")
            yield

    async with running(Adder, plane=(Full(),)) as url, Client(url) as client:
        with pytest.raises(InvalidRequestError, match="no service today"):
            await client.submit("service", task_id="refused", a=1, b=2)
        assert (await client.tasks.list()).items == []


async def test_a_retry_is_accepted_within_the_hooks() -> None:
    class Once(ControlPlaneInterceptor):
        """Refuses the second retry."""

        def __init__(self) -> None:
            self.retries: list[str | None] = []

        @contextmanager
        def submit(self, call: AcceptCall) -> Iterator[None]:
            if call.retry_of is not None:
                self.retries.append(call.retry_of)
                if len(self.retries) > 1:
                    raise InvalidRequestError("it was retried often enough")
            call.trace = TRACE
            yield

    once = Once()
    async with running(Adder, plane=(once,)) as url, Client(url) as client:
        task = await client.submit("service", a=1, b="two")
        with pytest.raises(TaskFailedError):
            await task.result()
        retried = await task.retry(from_="start")
        with pytest.raises(TaskFailedError):
            await retried.result()
        failed = TaskFilter(status=[TaskStatus.FAILED])
        (batch,) = [each async for each in client.tasks.bulk("retry", failed, dry_run=False, from_="start")]
        assert set(once.retries) == {task.task_id, retried.task_id}
        reasons = {each.task_id: each.reason for each in batch.items}
        assert reasons[retried.task_id] == "it was retried often enough"
        with pytest.raises(InvalidRequestError, match="often enough"):
            await retried.retry(from_="start")


async def test_an_attempt_that_a_hook_refuses_fails_its_task() -> None:
    class Refuses(WorkerInterceptor):
        @contextmanager
        def attempt(self, call: AttemptCall) -> Iterator[None]:
            raise RuntimeError("not on this machine")
            yield

    async with running(Adder, worker=(Refuses(),)) as url, Client(url) as client:
        with pytest.raises(TaskFailedError, match="not on this machine"):
            await client.run("service", a=1, b=2)


async def test_what_a_hook_raises_counts_as_raised_by_the_step() -> None:
    class Refuses(WorkerInterceptor):
        @contextmanager
        def step(self, call: StepCall) -> Iterator[None]:
            raise RuntimeError(f"{call.step_name} is not allowed")
            yield

    async with running(Adder, worker=(Refuses(),)) as url, Client(url) as client:
        with pytest.raises(TaskFailedError, match="add is not allowed"):
            await client.run("service", a=1, b=2)


@pytest.mark.parametrize("error", [OverloadedError, InvalidRequestError, ClosedError, RuntimeError])
async def test_a_dispatch_that_fails_in_a_hook_is_repeated(error: type[Exception]) -> None:
    failures = 2

    class Fails(ControlPlaneInterceptor):
        @contextmanager
        def dispatch(self, call: DispatchCall) -> Iterator[None]:
            nonlocal failures
            if failures:
                failures -= 1
                raise error("not now")
            yield

    async with running(Adder, plane=(Fails(),)) as url, Client(url) as client:
        assert await client.run("service", a=1, b=2) == 3
    assert failures == 0


async def test_what_hooks_raise_after_the_work_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    dispatches = 0

    class Late(ControlPlaneInterceptor):
        @contextmanager
        def dispatch(self, call: DispatchCall) -> Iterator[None]:
            nonlocal dispatches
            dispatches += 1
            yield
            raise InvalidRequestError("too late")

    class LateToo(WorkerInterceptor):
        @contextmanager
        def publish(self, call: PublishCall) -> Iterator[None]:
            yield
            raise RuntimeError("too late")

    async with running(Adder, plane=(Late(),), worker=(LateToo(),)) as url, Client(url) as client:
        assert await client.run("service", a=1, b=2) == 3
        assert dispatches == 1
    failures = [each for each in caplog.records if getattr(each, "action", "") == "interceptor_failed"]
    assert len(failures) == 2


@pytest.mark.parametrize("error", [RuntimeError, OverloadedError])
async def test_a_report_that_a_hook_refuses_fails_its_task(error: type[Exception]) -> None:
    class Refuses(WorkerInterceptor):
        failures = 1

        @contextmanager
        def publish(self, call: PublishCall) -> Iterator[None]:
            if self.failures:
                self.failures -= 1
                raise error("the hook is broken")
            yield

    async with running(Adder, worker=(Refuses(),)) as url, Client(url) as client:
        with pytest.raises(TaskFailedError, match="the hook is broken"):
            await client.run("service", a=1, b=2)


def test_a_class_is_not_taken_for_an_interceptor() -> None:
    with pytest.raises(ConfigError, match=r"OfWorker.* is not an object"):
        hooks_of([OfWorker], WorkerInterceptor, "publish")


async def test_a_hook_that_fails_at_the_end_of_a_task_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fails(ControlPlaneInterceptor):
        def ended(self, end: TaskEnd) -> None:
            raise RuntimeError("no room")

    async with running(Adder, plane=(Fails(),)) as url, Client(url) as client:
        assert await client.run("service", a=1, b=2) == 3
    assert any(getattr(record, "action", "") == "interceptor_failed" for record in caplog.records)


async def test_a_parked_run_ends_its_attempt_as_waiting() -> None:
    worker = OfWorker([])
    async with running(Asks, worker=(worker,), idle_timeout=0.0) as url, Client(url) as client:
        task = await client.submit("service")
        await eventually(lambda: [each.status for each in worker.attempts] == ["waiting"], seconds=60)
        await task.send(HumanResponseEvent(response="yes"))
        assert await task.result() == "yes"
    assert [each.status for each in worker.attempts] == ["waiting", "succeeded"]
    assert [each.task.attempt for each in worker.attempts] == [1, 2]


async def test_a_context_variable_of_an_attempt_reaches_the_steps() -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")

    class Sets(WorkerInterceptor):
        @contextmanager
        def attempt(self, call: AttemptCall) -> Iterator[None]:
            token = tenant.set("acme")
            try:
                yield
            finally:
                tenant.reset(token)

    class Tells(Workflow):
        @step
        async def tell(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=tenant.get())

    async with running(Tells, worker=(Sets(),)) as url, Client(url) as client:
        assert await client.run("service") == "acme"
