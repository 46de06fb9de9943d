"""Runs that are written down in the middle of something: waits, races with the journal, strange workflows."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.worker.workflow_attempt import WorkflowAttempt
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import TaskStatus
from llama_deploy.types.instance_protocol import JournalReply, JournalWrite
from tests.integration.in_process import Stack, failure_of, result_of, running_stack, stop


class Ask(InputRequiredEvent):
    question: str


class Answer(HumanResponseEvent):
    text: str
    about: str = ""


ANSWERS = [f"{Answer.__module__}:{Answer.__qualname__}"]


class Work(Event):
    number: int


class Load(Event):
    text: str


class Picky(Workflow):
    """Takes only the answer to its own question."""

    def __init__(self) -> None:
        super().__init__(timeout=None)

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for _ in range(50):
            await asyncio.sleep(0)  # Long enough for an answer to come in between, if it may.
        answer = await ctx.wait_for_event(Answer, requirements={"about": "name"})
        return StopEvent(result=answer.text)


class Reminds(Workflow):
    """Asks again when nobody has answered for a while."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            answer = await ctx.wait_for_event(Answer, waiter_id="first", timeout=0.7)
        except TimeoutError:
            answer = await ctx.wait_for_event(
                Answer, waiter_id="second", waiter_event=Ask(question="still there?"), timeout=None
            )
            return StopEvent(result=f"late {answer.text}")
        return StopEvent(result=f"early {answer.text}")


class Charges(Workflow):
    """Does something dear once it has an answer."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.gate = asyncio.Event()
        self.charged: list[str] = []

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Answer)
        self.charged.append(answer.text)
        await self.gate.wait()
        return StopEvent(result=answer.text)


class Retries(Workflow):
    """Its step fails once after it has got its answer; another takes all answers."""

    tried: ClassVar[list[str]] = []

    @step(retry_policy=retry_policy(wait=wait_fixed(1.0), stop=stop_after_attempt(3)))
    async def pay(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.tried.append((await ctx.wait_for_event(Answer, timeout=None)).text)
        if len(self.tried) == 1:
            raise ConnectionError("the bank is busy")
        return StopEvent(result=ctx.retry_info().retry_number)

    @step
    async def note(self, ev: Answer) -> None:
        """Let the library have a use for a second answer."""


class Form(Workflow):
    """A step asks twice, and the next one asks the first question again; another step notes all answers."""

    noted: ClassVar[list[str]] = []

    @step
    async def fill(self, ctx: Context, ev: StartEvent) -> Load:
        approval, address = [
            (await ctx.wait_for_event(Answer, requirements={"about": about}, timeout=None)).text
            for about in ("approval", "address")
        ]
        return Load(text=f"{approval} {address}")

    @step
    async def check(self, ctx: Context, ev: Load) -> StopEvent:
        again = await ctx.wait_for_event(Answer, requirements={"about": "approval"}, timeout=None)
        return StopEvent(result=f"{ev.text} {again.text}")

    @step
    async def note(self, ev: Answer) -> None:
        self.noted.append(ev.text)


class AskByEvent(Workflow):
    """A step ends with the question, another begins with the answer."""

    @step
    async def ask(self, ev: StartEvent) -> Ask:
        return Ask(question="name?")

    @step
    async def hear(self, ev: Answer) -> StopEvent:
        return StopEvent(result=f"hello {ev.text}")


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def until_waiting(stack: Stack, task_id: str, *, attempt: int = 1) -> None:
    async def waits() -> bool:
        view = await stack.plane.tasks.get(task_id)
        return view.status is TaskStatus.WAITING and view.attempt == attempt

    await eventually(waits)


class SlowGateway:
    """The control plane, which answers writes to journals only while it is let to."""

    def __init__(self, inner: ControlPlaneGateway) -> None:
        self._inner = inner
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def journal(self, write: JournalWrite) -> JournalReply:
        self.waiting += 1
        await self.open.wait()
        reply = await self._inner.journal(write)
        self.waiting -= 1
        return reply


def slow_service(stack: Stack, workflow: Workflow, **settings: Any) -> tuple[WorkflowService, SlowGateway]:
    gateway = SlowGateway(stack.server.gateway())
    config = WorkflowServiceConfig(
        host="127.0.0.1", port=0, service_name="service", **{"drain_timeout": 2.0, **settings}
    )
    return WorkflowService(workflow, stack.queue, config, gateway=gateway), gateway


def attempt_of(service: WorkflowService) -> WorkflowAttempt:
    assert service._worker is not None
    (attempt,) = service._worker.attempts
    return attempt


async def until_it_asks(service: WorkflowService) -> WorkflowAttempt:
    """Wait until the only run waits in memory for an answer; return its attempt."""
    await eventually(lambda: service._worker is not None and len(service._worker.attempts) == 1)
    attempt = attempt_of(service)
    await eventually(lambda: attempt.run is not None and attempt.run.clock.is_waiting)
    return attempt


async def nothing_more(happens: Callable[[], bool]) -> None:
    with pytest.raises(TimeoutError):
        await eventually(happens, seconds=0.3)


async def test_a_run_that_comes_back_takes_only_the_answer_that_it_asked_for(stack: Stack) -> None:
    async with stack.serving(stack.service(Picky(), idle_timeout=0, allowed_types=ANSWERS)):
        task_id = await stack.submit()
        await until_waiting(stack, task_id)
        await stack.send(task_id, Answer(text="wrong", about="age"))
        await until_waiting(stack, task_id, attempt=2)
        await stack.send(task_id, Answer(text="right", about="name"))
        assert result_of(await stack.end(task_id)) == "right"


async def test_a_run_that_comes_back_knows_which_of_its_waits_are_over(stack: Stack) -> None:
    async with stack.serving(stack.service(Reminds(timeout=None), idle_timeout=0, allowed_types=ANSWERS)):
        task_id = await stack.submit()
        await until_waiting(stack, task_id, attempt=2)
        await stack.send(task_id, Answer(text="yes"))
        assert result_of(await stack.end(task_id)) == "late yes"


@pytest.mark.parametrize("late", [False, True])
async def test_a_second_answer_does_not_run_the_step_twice(stack: Stack, late: bool) -> None:  # noqa: FBT001
    workflow = Charges()
    service = stack.service(workflow, idle_timeout=60, allowed_types=ANSWERS)
    async with stack.serving(service):
        task_id = await stack.submit()
        attempt = await until_it_asks(service)
        await stack.send(task_id, Answer(text="a"))
        if late:
            await eventually(lambda: bool(workflow.charged))
        await stack.send(task_id, Answer(text="b"))
        await eventually(lambda: attempt.inbox.seen == 2)
        await nothing_more(lambda: len(workflow.charged) > 1)
        workflow.gate.set()
        assert result_of(await stack.end(task_id)) == "a"
    assert workflow.charged == ["a"]


async def test_a_second_answer_that_outlives_the_instance_does_not_either(stack: Stack) -> None:
    first, second = Charges(), Charges()
    service = stack.service(first, drain_timeout=0, idle_timeout=60, allowed_types=ANSWERS)
    async with stack.serving(service):
        task_id = await stack.submit()
        attempt = await until_it_asks(service)
        await stack.send(task_id, Answer(text="a"))
        await eventually(lambda: bool(first.charged))
        await stack.send(task_id, Answer(text="b"))
        await eventually(lambda: attempt.inbox.seen == 2)
    async with stack.serving(stack.service(second, allowed_types=ANSWERS)):
        await eventually(lambda: bool(second.charged))
        await nothing_more(lambda: len(second.charged) > 1)
        second.gate.set()
        assert result_of(await stack.end(task_id)) == "a"


@pytest.mark.parametrize("stops", [False, True])
async def test_a_second_answer_does_not_run_a_step_that_waits_for_its_retry(
    stack: Stack, *, stops: bool
) -> None:
    Retries.tried.clear()
    service = stack.service(Retries(timeout=None), drain_timeout=0, idle_timeout=60, allowed_types=ANSWERS)
    async with stack.serving(service):
        task_id = await stack.submit()
        attempt = await until_it_asks(service)
        await stack.send(task_id, Answer(text="a"))
        await eventually(lambda: bool(Retries.tried))
        if not stops:
            await stack.send(task_id, Answer(text="b"))
            await eventually(lambda: attempt.inbox.seen == 2)
            assert result_of(await stack.end(task_id)) == 1
    if stops:
        await stack.send(task_id, Answer(text="b"))
        async with stack.serving(stack.service(Retries(timeout=None), allowed_types=ANSWERS)):
            assert result_of(await stack.end(task_id)) == 1
    assert Retries.tried == ["a", "a"]


@pytest.mark.parametrize("stops", [False, True])
async def test_the_first_answer_counts_also_for_a_run_that_has_left_since(
    stack: Stack, *, stops: bool
) -> None:
    def service() -> WorkflowService:
        return stack.service(Form(timeout=None), idle_timeout=0, allowed_types=ANSWERS)

    Form.noted.clear()
    async with stack.serving(service()):
        task_id = await stack.submit()
        await until_waiting(stack, task_id)
        await stack.send(task_id, Answer(text="Ada", about="approval"))
        await until_waiting(stack, task_id, attempt=2)
        if not stops:
            await stack.send(task_id, Answer(text="Bob", about="approval"))
            await until_waiting(stack, task_id, attempt=3)
            await stack.send(task_id, Answer(text="home", about="address"))
            assert result_of(await stack.end(task_id)) == "Ada home Bob"
    if stops:
        await stack.send(task_id, Answer(text="Bob", about="approval"))
        async with stack.serving(service()):
            await until_waiting(stack, task_id, attempt=3)
        await stack.send(task_id, Answer(text="home", about="address"))
        async with stack.serving(service()):
            assert result_of(await stack.end(task_id)) == "Ada home Bob"
    assert Form.noted[:2] == ["Ada", "home"]


async def test_an_answer_that_comes_while_the_run_is_about_to_leave_wakes_it(stack: Stack) -> None:
    service, gateway = slow_service(stack, AskByEvent(timeout=None), idle_timeout=0.1)
    async with stack.serving(service):
        gateway.open.clear()
        task_id = await stack.submit()
        await eventually(lambda: gateway.waiting == 1)
        attempt = attempt_of(service)
        await eventually(lambda: attempt.inbox.is_held)
        await stack.send(task_id, Answer(text="Ada"))
        await eventually(lambda: attempt.inbox.seen == 1)
        gateway.open.set()
        assert result_of(await stack.end(task_id)) == "hello Ada"


class TwoSteps(Workflow):
    """Its second step ends when the gate is open."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.gate = asyncio.Event()
        self.begun: list[str] = []

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Work:
        self.begun.append("first")
        return Work(number=1)

    @step
    async def second(self, ctx: Context, ev: Work) -> StopEvent:
        self.begun.append("second")
        await self.gate.wait()
        return StopEvent(result="done")


async def test_no_step_starts_on_an_instance_that_has_given_the_run_away(stack: Stack) -> None:
    workflow = TwoSteps()
    service, gateway = slow_service(stack, workflow, drain_timeout=0)
    async with stack.serving(service):
        gateway.open.clear()
        await stack.submit()
        await eventually(lambda: gateway.waiting == 1)
        attempt_of(service).abandon()
        gateway.open.set()
        await eventually(lambda: gateway.waiting == 0)
        await nothing_more(lambda: workflow.begun != ["first"])


class OwnRun(Workflow):
    """Runs another hosted workflow before it begins."""

    def __init__(self, other: Workflow) -> None:
        super().__init__(timeout=None)
        self.other = other
        self.begun: list[str] = []
        self.gate = asyncio.Event()

    async def run(self, **_: Any) -> Any:  # type: ignore[override]
        return Workflow.run(self, before=await self.other.run())

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Work:
        self.begun.append("first")
        return Work(number=1)

    @step
    async def second(self, ctx: Context, ev: Work) -> StopEvent:
        self.begun.append("second")
        await self.gate.wait()
        return StopEvent(result="own")


async def test_a_workflow_that_is_run_before_another_is_not_part_of_its_journal(stack: Stack) -> None:
    other = TwoSteps()
    other.gate.set()
    own, again = OwnRun(other), OwnRun(other)
    async with stack.serving(stack.service(other, name="other")):
        async with stack.serving(stack.service(own, drain_timeout=0)):
            task_id = await stack.submit()
            await eventually(lambda: "second" in own.begun)
        again.gate.set()
        async with stack.serving(stack.service(again)):
            assert result_of(await stack.end(task_id)) == "own"
    assert again.begun == ["second"]


class Hanging(Workflow):
    """Does not come to its first step."""

    def run(self, **_: Any) -> Any:  # type: ignore[override]
        return asyncio.Event().wait()

    @step
    async def first(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


async def test_a_run_that_has_not_begun_can_be_cancelled(stack: Stack) -> None:
    async with stack.serving(stack.service(Hanging(timeout=None))):
        task_id = await stack.submit()

        async def runs() -> bool:
            return (await stack.plane.tasks.get(task_id)).status is TaskStatus.RUNNING

        await eventually(runs)
        await stack.plane.tasks.cancel(task_id)
        assert (await stack.end(task_id, wait=4)).status is TaskStatus.CANCELLED


class Heavy(Workflow):
    """Hands more from step to step than the control plane takes at once."""

    @step
    async def begin(self, ev: StartEvent) -> list[Load]:
        return [Load(text="x" * 10_000) for _ in range(300)]

    @step
    async def weigh(self, ev: Load) -> Work:
        return Work(number=len(ev.text))

    @step
    async def add(self, evs: list[Work]) -> StopEvent:
        return StopEvent(result=sum(each.number for each in evs))


async def test_a_journal_may_grow_by_more_than_the_control_plane_takes_at_once(stack: Stack) -> None:
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="service")
    service = WorkflowService(Heavy(timeout=None), stack.queue, config)
    await service.register_to_control_plane(stack.server.config.url)
    task = await service.launch_local()
    try:
        assert result_of(await stack.run()) == 3_000_000
    finally:
        await stop(task)


class Nothing(Workflow):
    """Its last step returns nothing."""

    def __init__(self, timeout: float | None) -> None:
        super().__init__(timeout=timeout)
        self.done = asyncio.Event()

    @step
    async def begin(self, ev: StartEvent) -> Work:
        return Work(number=1)

    @step
    async def last(self, ev: Work) -> StopEvent | None:
        self.done.set()
        return None


async def test_a_run_at_a_dead_end_does_not_block_its_session(stack: Stack) -> None:
    async with stack.serving(stack.service(Nothing(timeout=0.5))):
        session = await stack.session()
        for task_id in [await stack.submit("service", session) for _ in range(2)]:
            view = await stack.end(task_id)
            assert view.status is TaskStatus.TIMED_OUT
            assert "step 'last' took Work and returned None" in failure_of(view)[1]


async def test_a_run_at_a_dead_end_ends_elsewhere_too(stack: Stack) -> None:
    first = Nothing(timeout=None)
    async with stack.serving(stack.service(first, drain_timeout=0)):
        task_id = await stack.submit()
        async with asyncio.timeout(10):
            await first.done.wait()

        async def stored() -> bool:
            return bool((await stack.store.read(lambda tx: tx.tasks.load([task_id])))[task_id].has_run)

        await eventually(stored)
    second = Nothing(timeout=None)
    async with stack.serving(stack.service(second, idle_timeout=0.1)):
        error_type, message = failure_of(await stack.end(task_id))
    assert error_type == "llama_deploy.errors.RunStuckError"
    assert "nothing is waited for" in message
    assert not second.done.is_set()
