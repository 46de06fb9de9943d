"""Runs with values that cannot be stored: they continue in memory, and start again elsewhere."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ConfigDict, Field
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.state_stores.large_values import text_of
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import Durability, SessionPolicy, TaskStatus
from tests.integration.in_process import Stack, failure_of, result_of, running_stack


class OpenAI:
    """A client that cannot be stored."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Ask(InputRequiredEvent):
    question: str = "go on?"


class Answer(HumanResponseEvent):
    text: str


ANSWERED: dict[str, Any] = {"allowed_types": [f"{Answer.__module__}:{Answer.__qualname__}"]}


class Second(Event):
    tool: Any = None


class Third(Event):
    pass


class KeepsClient(Workflow):
    """Keeps a client in its store, and asks before its last step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(timeout=None, **options)
        self.begun: list[str] = []

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Second:
        self.begun.append("first")
        ctx.write_event_to_stream(Event(step="first"))
        await ctx.store.set("llm", OpenAI())
        await ctx.store.set("name", "Ada")
        return Second()

    @step
    async def second(self, ctx: Context, ev: Second) -> Third:
        self.begun.append("second")
        answer = await ctx.wait_for_event(Answer, waiter_event=Ask())
        await ctx.store.set("answer", answer.text)
        return Third()

    @step
    async def third(self, ctx: Context, ev: Third) -> StopEvent:
        self.begun.append("third")
        client = await ctx.store.get("llm")
        return StopEvent(result=f"{type(client).__name__} {await ctx.store.get('answer')}")


class KeepsAndAsks(Workflow):
    """Keeps a client and asks in the same step."""

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("llm", OpenAI())
        answer = await ctx.wait_for_event(Answer, waiter_event=Ask())
        return StopEvent(result=answer.text)


class CarriesTool(Workflow):
    """Hands a client from step to step."""

    @step
    async def first(self, ev: StartEvent) -> Second:
        return Second(tool={"search": [OpenAI()]})

    @step
    async def second(self, ev: Second) -> StopEvent:
        return StopEvent(result=type(ev.tool["search"][0]).__name__)


class Gate(Workflow):
    """Blocks after an answer that it has taken."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.gate = asyncio.Event()
        self.reached = asyncio.Event()

    @step
    async def ask(self, ev: StartEvent) -> Ask:
        return Ask()

    @step
    async def hear(self, ctx: Context, ev: Answer) -> Second:
        await ctx.store.set("heard", ev.text)
        return Second()

    @step
    async def make(self, ctx: Context, ev: Second) -> Third:
        await ctx.store.set("llm", OpenAI())
        return Third()

    @step
    async def wait(self, ctx: Context, ev: Third) -> StopEvent:
        self.reached.set()
        await self.gate.wait()
        return StopEvent(result=await ctx.store.get("heard"))


class KeepsOnSelf(Workflow):
    """Keeps a report in an attribute, from one step to the next."""

    gates: ClassVar[dict[str, asyncio.Event]] = {}
    begun: ClassVar[list[str]] = []
    report: str

    @step
    async def first(self, ev: StartEvent) -> Second:
        self.begun.append("first")
        self.report = f"report of {ev.name}"
        return Second()

    @step
    async def second(self, ev: Second) -> StopEvent:
        self.begun.append("second")
        await self.gates["gate"].wait()
        return StopEvent(result=self.report)


class CountsAtRun(Workflow):
    """Its own `run` sets an attribute."""

    calls = 0

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().run(*args, **kwargs)

    @step
    async def first(self, ev: StartEvent) -> Second:
        return Second()

    @step
    async def second(self, ev: Second) -> StopEvent:
        return StopEvent(result=self.calls)


class Reads(Workflow):
    """Sets a key in the first task of a session, and reads it in the next."""

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        if ev.set:
            await ctx.store.set("llm", OpenAI())
            await ctx.store.set("count", 1)
            return StopEvent(result="set")
        await ctx.store.set("count", await ctx.store.get("count") + 1)
        if ev.default:
            return StopEvent(result=str(await ctx.store.get("llm", default=None)))
        return StopEvent(result=str(await ctx.store.get("llm")))


class Typed(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    llm: OpenAI | None = None
    count: int = 0


class Live(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="allow")

    llm: OpenAI = Field(default_factory=OpenAI)
    count: int = 0


class KeepsTyped(Workflow):
    """A state with a default that cannot be stored, and a further key."""

    @step
    async def first(self, ctx: Context[Live], ev: StartEvent) -> Second:
        async with ctx.store.edit_state() as state:
            state.count += 1
            state.more = OpenAI()  # type: ignore[attr-defined]
        return Second()

    @step
    async def second(self, ctx: Context[Live], ev: Second) -> StopEvent:
        return StopEvent(result=(await ctx.store.get_state()).count)


class KeepsSelfKey(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        count = await ctx.store.get("self", default=0) + 1
        await ctx.store.set("self", count)
        await ctx.store.set("llm", OpenAI())
        return StopEvent(result=count)


class Nested(Workflow):
    """Its store can be written key by key, but not as a whole."""

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        deep: list[Any] = []
        for _ in range(99):
            deep = [deep]
        await ctx.store.set("deep", deep)
        return StopEvent(result="done")


class Books(Workflow):
    """Prepares, asks, and books with what it has prepared."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.order: list[str] = []
        self.gate = asyncio.Event()

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Ask:
        self.order.append("ask")
        await asyncio.sleep(0.1)
        await ctx.store.set("llm", OpenAI())
        return Ask()

    @step
    async def book(self, ctx: Context, ev: Answer) -> StopEvent:
        self.order.append("book")
        await ctx.store.get("llm")
        await self.gate.wait()
        return StopEvent(result=ev.text)


class ReadsTyped(Workflow):
    """The same with a typed state."""

    @step
    async def only(self, ctx: Context[Typed], ev: StartEvent) -> StopEvent:
        async with ctx.store.edit_state() as state:
            state.count += 1
            if ev.set:
                state.llm = OpenAI()
            return StopEvent(result=[state.count, type(state.llm).__name__])


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def until_asked(stack: Stack, task_id: str, workflow: KeepsClient) -> None:
    async def asked() -> bool:
        view = await stack.plane.tasks.get(task_id)
        return view.durability is Durability.VOLATILE and "second" in workflow.begun

    await eventually(asked)


async def test_a_run_with_a_live_object_in_its_store_ends_and_says_why_it_is_volatile(stack: Stack) -> None:
    workflow = KeepsClient()
    async with stack.serving(stack.service(workflow, **ANSWERED)):
        task_id = await stack.submit()
        await until_asked(stack, task_id, workflow)
        await stack.send(task_id, Answer(text="yes"))
        view = await stack.end(task_id)
    assert result_of(view) == "OpenAI yes"
    assert view.durability is Durability.VOLATILE
    assert view.volatile_reason == "ctx.store['llm'] holds an OpenAI"


async def test_a_live_object_between_steps_arrives(stack: Stack) -> None:
    async with stack.serving(stack.service(CarriesTool())):
        view = await stack.run()
    assert result_of(view) == "OpenAI"
    assert view.volatile_reason == "event Second.tool.search[0] holds an OpenAI"


async def test_a_run_that_is_stored_says_so(stack: Stack) -> None:
    async with stack.serving(stack.service(Reads())):
        view = await stack.run(set=False, default=True)
    assert (view.durability, view.volatile_reason) == (Durability.STEP, None)
    async with stack.serving(stack.service(Reads(), durability="task")):
        assert (await stack.run(set=False, default=True)).durability is Durability.TASK


async def test_a_volatile_run_starts_again_with_its_answers(stack: Stack) -> None:
    first, second = Gate(), Gate()
    async with stack.serving(stack.service(first, **ANSWERED, drain_timeout=0)):
        task_id = await stack.submit()
        await stack.send(task_id, Answer(text="once"))
        async with asyncio.timeout(10):
            await first.reached.wait()
        view = await stack.plane.tasks.get(task_id)
        assert view.volatile_reason == "ctx.store['llm'] holds an OpenAI"
    second.gate.set()
    async with stack.serving(stack.service(second, **ANSWERED)):
        assert result_of(await stack.end(task_id)) == "once"
    assert [event.type for event in await stack.events(task_id)] == ["Ask", "Ask", "StopEvent"]


async def test_volatile_runs_that_wait_take_no_slot(stack: Stack) -> None:
    workflow = KeepsClient()
    async with stack.serving(stack.service(workflow, **ANSWERED, max_concurrent_tasks=2, idle_timeout=0)):
        tasks = [await stack.submit() for _ in range(6)]
        await eventually(lambda: workflow.begun.count("second") == 6)
        for task_id in tasks:
            await stack.send(task_id, Answer(text="yes"))
        for task_id in tasks:
            assert result_of(await stack.end(task_id)) == "OpenAI yes"


async def test_a_run_that_becomes_volatile_while_it_waits_gives_up_its_slot(stack: Stack) -> None:
    service = stack.service(KeepsAndAsks(timeout=None), max_concurrent_tasks=1, idle_timeout=60, **ANSWERED)
    async with stack.serving(service):
        tasks = [await stack.submit() for _ in range(3)]

        async def all_ask() -> bool:
            views = [await stack.plane.tasks.get(task_id) for task_id in tasks]
            return all(view.durability is Durability.VOLATILE for view in views)

        await eventually(all_ask)
        for task_id in tasks:
            await stack.send(task_id, Answer(text="yes"))
            assert result_of(await stack.end(task_id)) == "yes"


async def test_a_drain_hands_back_volatile_runs_that_wait_and_says_so(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = KeepsClient(), KeepsClient()
    async with asyncio.timeout(15):
        async with stack.serving(stack.service(first, **ANSWERED, drain_timeout=60)):
            task_id = await stack.submit()
            await until_asked(stack, task_id, first)
        assert f"task {task_id} starts from its beginning on another instance" in caplog.text
        assert "ctx.store['llm'] holds an OpenAI" in caplog.text
        async with stack.serving(stack.service(second, **ANSWERED)):
            await eventually(lambda: "second" in second.begun)
            await stack.send(task_id, Answer(text="yes"))
            assert result_of(await stack.end(task_id)) == "OpenAI yes"
    assert first.begun[:2] == ["first", "second"]


async def test_one_volatile_run_of_a_service_is_logged(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with stack.serving(stack.service(CarriesTool())):
        for _ in range(3):
            await stack.run()
    found = [record for record in caplog.records if getattr(record, "action", "") == "volatile"]
    assert len(found) == 1
    assert "event Second.tool.search[0] holds an OpenAI" in found[0].getMessage()


async def test_a_strict_service_refuses_at_the_end_of_the_step(stack: Stack) -> None:
    workflow = KeepsClient()
    async with stack.serving(stack.service(workflow, **ANSWERED, durability="step")):
        error_type, message = failure_of(await stack.run())
    assert error_type == "llama_deploy.errors.SerializationError"
    assert message.startswith("ctx.store['llm'] is a")
    assert workflow.begun == ["first"]


@pytest.mark.parametrize("durability", ["auto", "task"])
async def test_a_key_that_cannot_be_stored_is_missing_in_the_next_task(stack: Stack, durability: str) -> None:
    async with stack.serving(stack.service(Reads(), durability=durability)):
        session = await stack.session()
        assert result_of(await stack.run("service", session, set=True)) == "set"
        assert result_of(await stack.run("service", session, set=False, default=True)) == "None"
        error_type, message = failure_of(await stack.run("service", session, set=False, default=False))
        assert error_type == "llama_deploy.errors.MissingStateError"
        assert "ctx.store['llm'] is missing in this task: ctx.store['llm'] holds an OpenAI" in message


async def test_a_key_that_can_be_stored_again_is_not_missing_any_more(stack: Stack) -> None:
    class SetsText(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.store.set("llm", OpenAI() if ev.live else "text")
            return StopEvent()

    async with stack.serving(stack.service(SetsText())):
        session = await stack.session()
        result_of(await stack.run("service", session, live=True))
        result_of(await stack.run("service", session, live=False))
        state = text_of((await stack.stored(session)).state)
    assert "holds an OpenAI" not in state


async def test_a_field_of_a_typed_state_that_cannot_be_stored_gets_its_default(stack: Stack) -> None:
    async with stack.serving(stack.service(ReadsTyped())):
        session = await stack.session()
        assert result_of(await stack.run("service", session, set=True)) == [1, "OpenAI"]
        assert result_of(await stack.run("service", session, set=False)) == [2, "NoneType"]


async def test_a_volatile_run_can_be_cancelled_while_it_waits(stack: Stack) -> None:
    workflow = KeepsClient()
    async with stack.serving(stack.service(workflow, **ANSWERED)):
        session = await stack.session(SessionPolicy.ENQUEUE)
        task_id = await stack.submit("service", session)
        await until_asked(stack, task_id, workflow)
        await stack.plane.tasks.cancel(task_id)
        assert (await stack.end(task_id)).status is TaskStatus.CANCELLED


@pytest.mark.parametrize("shared", [True, False])
async def test_a_run_whose_step_keeps_data_on_self_starts_again_elsewhere(
    stack: Stack,
    shared: bool,  # noqa: FBT001
) -> None:
    KeepsOnSelf.gates["gate"] = asyncio.Event()
    KeepsOnSelf.begun.clear()

    def hosted() -> Any:
        return KeepsOnSelf() if shared else KeepsOnSelf

    async with stack.serving(stack.service(hosted(), drain_timeout=0)):
        task_id = await stack.submit(name="Ada")
        await eventually(lambda: "second" in KeepsOnSelf.begun)
        view = await stack.plane.tasks.get(task_id)
        assert view.durability is Durability.VOLATILE
        assert view.volatile_reason == "the step 'first' has set `self.report`"
    KeepsOnSelf.gates["gate"].set()
    async with stack.serving(stack.service(hosted())):
        assert result_of(await stack.end(task_id)) == "report of Ada"
    assert KeepsOnSelf.begun == ["first", "second", "first", "second"]


async def test_what_an_own_run_method_keeps_on_self_makes_a_run_volatile(stack: Stack) -> None:
    async with stack.serving(stack.service(CountsAtRun)):
        view = await stack.run()
    assert result_of(view) == 1
    assert view.volatile_reason == "the method 'run' has set `self.calls`"


async def test_a_strict_service_stores_runs_that_keep_data_on_self(stack: Stack) -> None:
    KeepsOnSelf.gates["gate"] = asyncio.Event()
    KeepsOnSelf.gates["gate"].set()
    async with stack.serving(stack.service(KeepsOnSelf, durability="step")):
        view = await stack.run(name="Ada")
    assert (result_of(view), view.durability) == ("report of Ada", Durability.STEP)


@pytest.mark.parametrize("workflow", [KeepsTyped, KeepsSelfKey])
async def test_what_can_be_stored_of_a_state_is(stack: Stack, workflow: type[Workflow]) -> None:
    async with stack.serving(stack.service(workflow())):
        session = await stack.session()
        for count in (1, 2):
            assert result_of(await stack.run("service", session)) == count


async def test_a_state_that_cannot_be_stored_at_all_fails_no_task(stack: Stack) -> None:
    async with stack.serving(stack.service(Nested())):
        session = await stack.session()
        for _ in range(2):
            assert result_of(await stack.run("service", session)) == "done"


async def test_left_out_keys_are_logged_once(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    async with stack.serving(stack.service(Reads())):
        for _ in range(2):
            await stack.run(set=True)
    found = [record for record in caplog.records if getattr(record, "action", "") == "state_left_out"]
    assert len(found) == 1
    assert "ctx.store['llm'] holds an OpenAI" in found[0].getMessage()


@pytest.mark.parametrize("durability", ["auto", "task"])
async def test_a_restarted_run_gets_its_answers_when_it_asks_again(stack: Stack, durability: str) -> None:
    first, second = Books(), Books()
    async with stack.serving(stack.service(first, drain_timeout=0, durability=durability)):
        task_id = await stack.submit()

        async def asked() -> bool:
            tasks = await stack.store.read(lambda tx: tx.tasks.load([task_id]))
            return tasks[task_id].stream_length == 1

        await eventually(asked)
        await stack.send(task_id, Answer(text="yes"))
        await eventually(lambda: first.order == ["ask", "book"])
    second.gate.set()
    async with stack.serving(stack.service(second, durability=durability)):
        assert result_of(await stack.end(task_id)) == "yes"
    assert second.order == ["ask", "book"]
