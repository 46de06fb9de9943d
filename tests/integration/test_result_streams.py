"""Results that are streams: they are read into the task's stream, and become a text or a list."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms.mock import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from llama_deploy.services import StreamedItem
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import TaskEvent, TaskStatus
from tests.integration.in_process import Stack, failure_of, result_of, running_stack, stop, until

WORDS = ["Deep", " is", " the", " sea"]
TEXT = "Deep is the sea"


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def words() -> AsyncGenerator[str]:
    for word in WORDS:
        await asyncio.sleep(0)
        yield word


def sync_words() -> Generator[str]:
    yield from WORDS


async def completions() -> AsyncGenerator[CompletionResponse]:
    text = ""
    for word in WORDS:
        text += word
        yield CompletionResponse(text=text, delta=word, raw=threading.Lock())


async def chat_responses() -> AsyncGenerator[ChatResponse]:
    for word in WORDS:
        yield ChatResponse(message=ChatMessage(role="assistant", content=word), delta=word, raw=object())


async def without_deltas() -> AsyncGenerator[CompletionResponse]:
    for end in range(1, len(WORDS) + 1):
        yield CompletionResponse(text="".join(WORDS[:end]))


async def numbers() -> AsyncGenerator[dict[str, int]]:
    for number in range(3):
        yield {"number": number}


async def nothing() -> AsyncGenerator[str]:
    return
    yield ""


def streaming_chat() -> Any:
    memory = ChatMemoryBuffer.from_defaults(llm=MockLLM())
    return SimpleChatEngine.from_defaults(llm=MockLLM(), memory=memory).stream_chat(TEXT)


MAKES: dict[str, Any] = {
    "words": words,
    "sync_words": sync_words,
    "completions": completions,
    "chat_responses": chat_responses,
    "without_deltas": without_deltas,
    "numbers": numbers,
    "nothing": nothing,
    "async_response": lambda: AsyncStreamingResponse(words()),
    "response": lambda: StreamingResponse(sync_words()),
    "read_response": lambda: StreamingResponse(sync_words(), response_txt=TEXT),
    "nested": lambda: {"answer": words(), "sources": [1, 2]},
    "pair": lambda: (1, sync_words()),
    "chat": streaming_chat,
}


class Streams(Workflow):
    @step
    async def answer(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Event(about="before"))
        return StopEvent(result=MAKES[ev.make](), note=sync_words())


class SyncStreams(Workflow):
    @step
    def answer(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=MAKES[ev.make](), note=sync_words())


class Done(StopEvent):
    answer: Any
    lines: Generator[str, None, None]
    count: int


class Typed(Workflow):
    @step
    async def answer(self, ev: StartEvent) -> Done:
        return Done(answer=words(), lines=sync_words(), count=4)


def items_of(events: list[TaskEvent]) -> list[StreamedItem]:
    return [StreamedItem(**event.data) for event in events if event.type == "StreamedItem"]


def text_of(events: list[TaskEvent], field: str = "result") -> str:
    return "".join(item.delta for item in items_of(events) if item.field == field)


@pytest.mark.parametrize("workflow", [Streams, SyncStreams])
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        *(
            (make, TEXT)
            for make in (
                "words",
                "sync_words",
                "completions",
                "chat_responses",
                "without_deltas",
                "async_response",
                "response",
                "read_response",
            )
        ),
        ("numbers", [{"number": 0}, {"number": 1}, {"number": 2}]),
        ("nothing", []),
        ("nested", {"answer": TEXT, "sources": [1, 2]}),
        ("pair", [1, TEXT]),
    ],
)
async def test_a_result_that_is_a_stream_is_read(
    stack: Stack, workflow: type[Workflow], make: str, expected: Any
) -> None:
    service = stack.service(workflow)
    async with stack.serving(service):
        view = await stack.run(make=make)
        assert result_of(view) == expected
        assert view.result is not None
        assert view.result.result == str(tuple(expected) if make == "pair" else expected)
        events = await stack.events(view.task_id)
    items = [item for item in items_of(events) if item.field != "note"]
    assert [item.index for item in items] == list(range(len(items)))
    if expected == TEXT:
        assert [item.delta for item in items] == ([TEXT] if make == "read_response" else WORDS)
    if make == "numbers":
        assert [item.item for item in items] == expected
    if make == "nested":
        assert text_of(events, "result.answer") == TEXT
    assert events[-1].data == {"result": expected, "note": TEXT}
    if workflow is Streams:
        assert events[0].data == {"about": "before"}, "what the step has streamed before comes first"


async def test_the_answer_of_a_chat_engine_is_read(stack: Stack) -> None:
    async with stack.serving(stack.service(Streams)):
        view = await stack.run(make="chat")
        assert TEXT in result_of(view)
        assert text_of(await stack.events(view.task_id)) == result_of(view)


async def test_the_fields_of_a_stop_event_are_read(stack: Stack) -> None:
    async with stack.serving(stack.service(Typed)):
        view = await stack.run()
        events = await stack.events(view.task_id)
    assert events[-1].data == {"answer": TEXT, "lines": TEXT, "count": 4}
    assert text_of(events, "answer") == text_of(events, "lines") == TEXT


class Closes(Workflow):
    """Its streams tell when they are closed."""

    closed: ClassVar[list[str]] = []
    calls: ClassVar[list[int]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.closed.clear()
        self.calls.clear()

    @step(retry_policy=retry_policy(wait=wait_fixed(0.01), stop=stop_after_attempt(3)))
    async def answer(self, ev: StartEvent) -> StopEvent:
        self.calls.append(1)
        return StopEvent(result=getattr(self, ev.how)())

    async def fails(self) -> AsyncGenerator[str]:
        try:
            yield "half"
            if len(self.calls) < 3:
                raise ValueError("the model has hung up")
        finally:
            self.closed.append("fails")

    def fails_in_a_thread(self) -> Generator[str]:
        try:
            yield "half"
            if len(self.calls) < 3:
                raise ValueError("the model has hung up")
        finally:
            self.closed.append("fails_in_a_thread")

    async def exits(self) -> AsyncGenerator[str]:
        yield "half"
        raise SystemExit(3)

    async def hangs(self) -> AsyncGenerator[str]:
        try:
            yield "half"
            await asyncio.sleep(60)
        finally:
            self.closed.append("hangs")

    def hangs_in_a_thread(self) -> Generator[str]:
        end = threading.Event()
        try:
            yield "half"
            while not end.wait(0.01):
                yield ""
        finally:
            self.closed.append("hangs_in_a_thread")

    async def endless(self) -> AsyncGenerator[int]:
        try:
            for number in itertools.count():
                yield number
        finally:
            self.closed.append("endless")

    async def large(self) -> AsyncGenerator[str]:
        try:
            while True:
                yield "x" * 300_000
        finally:
            self.closed.append("large")


@pytest.mark.parametrize("how", ["fails", "fails_in_a_thread"])
async def test_what_a_stream_raises_is_the_failure_of_its_step(stack: Stack, how: str) -> None:
    async with stack.serving(stack.service(Closes())):
        view = await stack.run(how=how)
        assert result_of(view) == "half", "the step was tried three times"
        assert [item.index for item in items_of(await stack.events(view.task_id))] == [0, 0, 0]
    assert Closes.closed == [how] * 3


async def test_a_stream_that_would_end_the_process_fails_the_task(stack: Stack) -> None:
    async with stack.serving(stack.service(Closes())):
        error, _ = failure_of(await stack.run(how="exits"))
        assert error == "builtins.SystemExit"


@pytest.mark.parametrize("how", ["hangs", "hangs_in_a_thread"])
@pytest.mark.parametrize("end", ["cancel", "timeout"])
async def test_cancelling_and_the_time_limit_interrupt_reading(stack: Stack, how: str, end: str) -> None:
    async with stack.serving(stack.service(Closes(timeout=None if end == "cancel" else 0.5))):
        task_id = await stack.submit(how=how)

        async def has_begun() -> bool:
            return bool(await stack.plane.tasks.events(task_id)) and Closes.calls == [1]

        await eventually(has_begun)
        if end == "cancel":
            await stack.plane.tasks.cancel(task_id)
        view = await stack.end(task_id, wait=5)
        assert view.status is (TaskStatus.CANCELLED if end == "cancel" else TaskStatus.TIMED_OUT)
        await eventually(lambda: Closes.closed == [how])


class Rows(Workflow):
    """Its streams depend on the thread that reads them, and hold a lock meanwhile."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.lock = threading.Lock()

    @step
    async def answer(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=self.read())

    def read(self) -> Generator[str]:
        with closing(sqlite3.connect(":memory:")) as database, self.lock:
            for word in WORDS:
                yield from (row for (row,) in database.execute("SELECT ?", [word]))


async def test_a_generator_is_read_in_a_thread_of_its_own(stack: Stack) -> None:
    async with stack.serving(stack.service(Rows(), max_concurrent_tasks=60)):
        tasks = [await stack.submit() for _ in range(60)]
        assert [result_of(await stack.end(task)) for task in tasks] == [TEXT] * 60


class Tells(Workflow):
    @step
    async def answer(self, ctx: Context, ev: StartEvent) -> StopEvent:
        async def items() -> AsyncGenerator[int]:
            for number in range(3):
                ctx.write_event_to_stream(Event(number=number))
                yield number

        return StopEvent(result=items())


async def test_what_a_generator_streams_itself_is_in_order(stack: Stack) -> None:
    async with stack.serving(stack.service(Tells)):
        events = await stack.events((await stack.run()).task_id)
    told = [(event.type, event.data.get("number", event.data.get("item"))) for event in events[:-1]]
    assert told == [(name, number) for number in range(3) for name in ("Event", "StreamedItem")]


class TooLong(Workflow):
    @step
    async def answer(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=getattr(Closes(), ev.how)())


@pytest.mark.parametrize(("how", "limit"), [("endless", "10,000 items"), ("large", "4 MiB")])
async def test_a_stream_that_is_too_long_fails_the_task(stack: Stack, how: str, limit: str) -> None:
    async with stack.serving(stack.service(TooLong())):
        error, message = failure_of(await stack.run(how=how))
    assert error == "llama_deploy.errors.PayloadTooLargeError"
    assert limit in message
    assert "ctx.write_event_to_stream" in message, "what to do"
    assert Closes.closed == [how]


class Waits(Workflow):
    """Its stream waits in the middle, the first time."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.begun: list[str] = []
        self.may_end = asyncio.Event()

    @step
    async def first(self, ev: StartEvent) -> Event:
        self.begun.append("first")
        return Event()

    @step
    async def answer(self, ev: Event) -> StopEvent:
        self.begun.append("answer")
        return StopEvent(result=self.read())

    async def read(self) -> AsyncGenerator[str]:
        yield "Deep"
        await self.may_end.wait()
        yield " is the sea"


async def test_a_step_is_under_way_until_its_stream_is_read(stack: Stack) -> None:
    workflow = Waits()
    first = stack.service(workflow, drain_timeout=0.0)
    await first.register_to_control_plane()
    running = await first.launch_local()
    task_id = await stack.submit()

    async def has_streamed() -> bool:
        view = await stack.end(task_id, wait=0)
        return view.status is TaskStatus.RUNNING and workflow.begun == ["first", "answer"]

    await until(has_streamed)
    await stop(running)  # hands the task back
    workflow.may_end.set()
    async with stack.serving(stack.service(workflow)):
        view = await stack.end(task_id)
    assert result_of(view) == TEXT
    assert workflow.begun == ["first", "answer", "answer"], "the step runs again, the finished one does not"


class Outer(Workflow):
    """Reads the stream of another workflow, which is served too."""

    def __init__(self, inner: Workflow) -> None:
        super().__init__()
        self.inner = inner

    @step
    async def answer(self, ev: StartEvent) -> StopEvent:
        stream: Any = await self.inner.run(make="words")
        return StopEvent(result=[word async for word in stream])


async def test_the_stream_of_a_workflow_that_a_step_runs_is_left_to_the_step(stack: Stack) -> None:
    inner = Streams()
    async with (
        stack.serving(stack.service(inner, "inner")),
        stack.serving(stack.service(Outer(inner), "outer")),
    ):
        assert result_of(await stack.run("inner", make="words")) == TEXT
        assert result_of(await stack.run("outer")) == WORDS


class Counter:
    """An iterator of a user, which has no end."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.read += 1
        return self.read


class Returns(Workflow):
    value: ClassVar[Any] = None

    @step
    async def answer(self, ctx: Context, ev: StartEvent) -> StopEvent:
        if ev.get("stream", default=False):
            ctx.write_event_to_stream(Event(rows=self.value))
        return StopEvent(result={"held": [self.value]} if ev.get("inside", default=False) else self.value)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("make", [Counter, itertools.count, lambda: map(str, itertools.count())])
async def test_other_iterators_are_not_read(
    stack: Stack, make: Any, *, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = make()
    monkeypatch.setattr(Returns, "value", value)
    async with stack.serving(stack.service(Returns)):
        view = await stack.run(inside=inside)
        assert result_of(view) == str({"held": [value]} if inside else value), "its text, as in 0.6"
        assert next(value) in (0, 1, "0"), "it was not read"
        error, message = failure_of(await stack.run(stream=True))
        assert error == "llama_deploy.errors.SerializationError"
        assert "event Event.rows" in message
        assert type(value).__name__ in message


async def test_a_file_is_not_read(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("secret\n")
    with closing((tmp_path / "secret").open()) as file:
        monkeypatch.setattr(Returns, "value", file)
        async with stack.serving(stack.service(Returns)):
            view = await stack.run()
            assert result_of(view) == str(file)
            assert file.tell() == 0
