"""The programs run in a process without servers, and as tasks; what a caller sees of both can be compared."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic_core
from tests.programs.catalog import Program
from workflows import Context
from workflows.events import Event, InputRequiredEvent, StopEvent

from llama_deploy import Client, StreamedItem
from llama_deploy.client import TaskHandle
from llama_deploy.errors import TaskFailedError
from llama_deploy.types import Durability, TaskView

PATIENCE = 120.0
"""Seconds that fifty programs may take for a step together, on a loaded machine."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a run failed."""

    error_type: str
    message: str

    @classmethod
    def of(cls, error_type: str, message: str) -> Failure:
        """Return a failure; the servers load a program as a file, so its module has no package there."""
        return cls(error_type.removeprefix("tests.programs."), message)


@dataclass(frozen=True, slots=True)
class Streamed:
    """An event as a reader of the stream sees it."""

    type: str
    data: str
    """The fields as JSON."""

    @classmethod
    def of(cls, type_name: str, fields: dict[str, Any]) -> Streamed:
        return cls(type_name, pydantic_core.to_json(fields).decode())


@dataclass(slots=True)
class Run:
    """What a caller sees of one run of a program."""

    results: list[Any] = field(default_factory=list)
    """The result of each turn, a `Failure` if it failed."""
    events: list[Streamed] = field(default_factory=list)
    questions: set[str] = field(default_factory=set)
    """The names of the events that ask a person."""
    view: TaskView | None = None
    """The last task of a program that was served."""


async def run_plainly(program: Program) -> Run:
    """Run a program as its author does: `await workflow.run(...)`, over one context."""
    workflow, run = program.load(), Run()
    ctx: Context | None = None
    answers = iter(program.answers)
    for arguments in program.turns or (program.arguments,):
        handler = workflow.run(ctx=ctx, **arguments) if ctx is not None else workflow.run(**arguments)
        async for event in handler.stream_events():
            if isinstance(event, StopEvent):
                continue
            run.events.append(Streamed.of(type(event).__name__, _fields_of(event)))
            if isinstance(event, InputRequiredEvent):
                run.questions.add(type(event).__name__)
                await handler.send_event(next(answers))
        try:
            run.results.append(await _read(await handler, run.events))
        except Exception as exc:  # noqa: BLE001 - whatever the program raises
            run.results.append(Failure.of(f"{type(exc).__module__}.{type(exc).__qualname__}", str(exc)))
        ctx = handler.ctx
    assert [isinstance(each, Failure) for each in run.results] == [program.fails] * len(run.results), run
    return run


async def _read(result: Any, events: list[Streamed]) -> Any:
    """Return a result; of one that is a stream the text, as its reader puts it together.

    A service streams each item as an event.
    """
    if isinstance(result, Generator):
        deltas = list(result)
    elif isinstance(result, AsyncGenerator):
        deltas = [each.delta async for each in result]
    else:
        return result
    for index, delta in enumerate(deltas):
        item = {"field": "result", "index": index, "delta": delta}
        events.append(Streamed.of(StreamedItem.__name__, item))
    return "".join(deltas)


def _fields_of(event: Event) -> dict[str, Any]:
    """Return declared and undeclared fields side by side, as a reader of the stream gets them."""
    fields: dict[str, Any] = event.model_dump(mode="json")
    return {**fields.pop("_data", {}), **fields}


class Served:
    """A program as a client runs it: it answers the questions once `may_answer` is set.

    Args:
        client: The client.
        program: The program.
        plain: How the program runs without servers.
    """

    def __init__(self, client: Client, program: Program, plain: Run) -> None:
        self.program = program
        self.plain = plain
        self.run = Run()
        self.may_answer = asyncio.Event()
        self._client = client

    async def finish(self) -> Run:
        """Submit its tasks one after the other, and return what was seen when the last one has ended."""
        session = await self._client.core.sessions.create()
        answers = iter(self.program.answers)
        for arguments, plain in zip(
            self.program.turns or (self.program.arguments,), self.plain.results, strict=True
        ):
            handle = await self._client.submit(self.program.name, session=session, arguments=dict(arguments))
            await self._follow(handle, answers)
            self.run.results.append(await self._result_of(handle, plain))
            self.run.view = await handle.info()
        return self.run

    async def _follow(self, handle: TaskHandle, answers: Any) -> None:
        asked: set[Streamed] = set()
        async with aclosing(handle.events()) as events:
            async for event in events:
                if event.terminal:
                    continue
                seen = Streamed.of(event.type, event.data)
                self.run.events.append(seen)
                # A question that comes again after a crash is the same one, and has its answer.
                if event.type in self.plain.questions and seen not in asked:
                    asked.add(seen)
                    await self.may_answer.wait()
                    await handle.send(next(answers))

    async def _result_of(self, handle: TaskHandle, plain: Any) -> Any:
        as_type = None if isinstance(plain, Failure) else self.program.result_type or type(plain)
        try:
            return await handle.result(as_type=as_type)
        except TaskFailedError as exc:
            return Failure.of(exc.error_type or "", exc.error_message or "")


def compare_results(program: Program, plain: Run, served: Run) -> None:
    """Check that the results are the same: of the same classes, with the same content."""
    if program.result_type is str:
        assert served.results == [str(each) for each in plain.results]
        return
    assert [type(each) for each in served.results] == [type(each) for each in plain.results]
    assert _as_json(served.results) == _as_json(plain.results)


def _as_json(results: list[Any]) -> Any:
    return pydantic_core.to_jsonable_python(results)


def compare_events(program: Program, plain: Run, served: Run) -> None:
    """Check that a run which was not killed has streamed the same events."""
    if program.in_order:
        assert served.events == plain.events
    assert Counter(served.events) == Counter(plain.events)


def compare_events_after_kill(program: Program, plain: Run, served: Run, seen: int) -> None:
    """Check the events of a run that was killed once, against what docs/explanation/durability.md says.

    What a finished step has streamed is there once. What the step that was killed has streamed before may be
    there twice, and a volatile run starts from its beginning.

    Args:
        program: The program.
        plain: Its run without servers.
        served: Its run that was killed.
        seen: How many events a reader had got before.
    """
    volatile = program.durability is Durability.VOLATILE
    repeatable = {each for each in plain.events if volatile or each.type in program.repeated_events}
    if not program.in_order:
        repeated = Counter(served.events) - Counter(plain.events)
        assert not Counter(plain.events) - Counter(served.events)
        assert set(repeated) <= repeatable
        assert max(repeated.values(), default=0) <= 1
        return
    repeats = len(served.events) - len(plain.events)
    # The stream of the killed attempt, up to some event, then that of the next one.
    assert any(
        served.events == plain.events[:end] + plain.events[end - repeats :]
        and set(plain.events[end - repeats : end]) <= repeatable
        and (not volatile or end == repeats)
        for end in range(max(seen, repeats), len(plain.events) + 1)
    ), f"{served.events} is not a continuation of {plain.events}, of which {seen} were seen before the kill"


def compare_calls_after_kill(before: Counter[str], after: Counter[str], repeatable: frozenset[str]) -> None:
    """Check how often the calls of a durable program have returned: those of finished steps once.

    Args:
        before: Those of its run without servers.
        after: Those of its run that was killed.
        repeatable: Those of steps that may have been under way.
    """
    repeated = after - before
    assert not before - after
    assert set(repeated) <= repeatable
    assert max(repeated.values(), default=0) <= 1


class Outside:
    """The calls that the programs make outside of themselves: held back, released and counted.

    Args:
        folder: Where they are noted; its path is in the environment variable `OUTSIDE`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def hold(self, name: str) -> None:
        """Hold back a call, named `program/what`."""
        self._held(name).touch()

    def release(self) -> None:
        """Let all calls return."""
        for held in self._folder.glob("*.held"):
            held.unlink()

    def forget(self) -> None:
        """Begin to count again."""
        for calls in self._folder.glob("*.calls"):
            calls.unlink()

    def count(self, word: str, name: str) -> int:
        """Return how often a call has begun (`begin`) or returned (`end`)."""
        program, _, what = name.partition("/")
        return self._lines(program)[word, what]

    def returned(self, program: str) -> Counter[str]:
        """Return how often each call of a program has returned."""
        return Counter({what: n for (word, what), n in self._lines(program).items() if word == "end"})

    def _held(self, name: str) -> Path:
        return self._folder / f"{name}.held".replace("/", "-")

    def _lines(self, program: str) -> Counter[tuple[str, str]]:
        calls = self._folder / f"{program}.calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return Counter((word, what) for word, what, _ in map(str.split, lines))
