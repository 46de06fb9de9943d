"""What clients get of results and events that are not plain JSON."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import BaseModel
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, StartEvent, StopEvent

from llama_deploy.testing.conditions import eventually
from llama_deploy.types import TaskStatus
from tests.integration.in_process import Stack, failure_of, result_of, running_stack


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


class Handle:
    def __str__(self) -> str:
        return "a handle"


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Answer(BaseModel):
    text: str


class Returns(Workflow):
    value: ClassVar[Any] = None

    @step
    async def answer(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=self.value)


class Done(StopEvent):
    handle: Any


class ReturnsDone(Workflow):
    value: ClassVar[Any] = None

    @step
    async def answer(self, ev: StartEvent) -> Done:
        return Done(handle=self.value)


class Streams(Workflow):
    value: ClassVar[Any] = None

    @step
    async def answer(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Event(held=self.value))
        await asyncio.sleep(0.01)
        return StopEvent(result="done")


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def endless() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


ARRAY = np.array([1.5, 2.0])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Handle(), "a handle"),
        (b"\xff", r"b'\xff'"),
        ({1: "a", "1": "b"}, "{1: 'a', '1': 'b'}"),
        ({"a": [{None: 1, "None": 2}]}, "{'a': [{None: 1, 'None': 2}]}"),
        ({"a": 1, "held": endless()}, "{'a': 1, 'held': [[...]]}"),
        ("half \ud83d", r"half \ud83d"),
    ],
)
async def test_a_result_has_the_text_of_0_6(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, value: Any, text: str
) -> None:
    monkeypatch.setattr(Returns, "value", value)
    async with stack.serving(stack.service(Returns)):
        view = await stack.run()
    assert result_of(view) == text
    assert view.result is not None
    assert view.result.result == text


@pytest.mark.parametrize(
    ("value", "typed"),
    [
        (float("nan"), "NaN"),
        ({"score": float("inf")}, {"score": "Infinity"}),
        (ARRAY, [1.5, 2.0]),
        (np.float32(0.5), 0.5),
        (b"text", "text"),
        (1j + 1, "1+1j"),
        ([Handle], [f"{__name__}.Handle"]),
        ({"name": str, "output": Answer}, {"name": "builtins.str", "output": f"{__name__}.Answer"}),
        (10**60, 10**60),
        (nested(100), nested(100)),
    ],
)
async def test_a_typed_value_stands_beside_the_text(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, value: Any, typed: Any
) -> None:
    monkeypatch.setattr(Returns, "value", value)
    async with stack.serving(stack.service(Returns)):
        view = await stack.run()
    assert result_of(view) == typed
    assert view.result is not None
    assert view.result.result == str(value)


ODD: dict[str, Any] = {
    "long": 10**5000,
    "long inside": [10**5000],
    "mute": Mute(),
    "deep": nested(180),
    "deeper": nested(500),
    "deepest": nested(3000),
}


@pytest.mark.parametrize("name", list(ODD))
@pytest.mark.parametrize("workflow", [Returns, ReturnsDone, Streams])
async def test_no_value_holds_a_task_up(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, workflow: Any, name: str
) -> None:
    monkeypatch.setattr(workflow, "value", ODD[name])
    async with stack.serving(stack.service(workflow)):
        view = await stack.run()
        # Pydantic writes a deep list, but messages cannot hold it. Other values of a result become a text.
        fails = name == "deep" or workflow is Streams
        assert view.status is (TaskStatus.FAILED if fails else TaskStatus.SUCCEEDED)
        monkeypatch.setattr(workflow, "value", 1)
        assert (await stack.run()).status is TaskStatus.SUCCEEDED, "the service goes on"


async def test_a_stop_event_with_an_object_has_its_text(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReturnsDone, "value", Handle())
    async with stack.serving(stack.service(ReturnsDone)):
        view = await stack.run()
    assert view.status is TaskStatus.SUCCEEDED


@pytest.mark.parametrize(("value", "words"), [({1: "a", "1": "b"}, "same in JSON"), (Handle(), "Handle")])
async def test_an_event_that_cannot_be_streamed_fails_the_task(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, value: Any, words: str
) -> None:
    monkeypatch.setattr(Streams, "value", value)
    async with stack.serving(stack.service(Streams)):
        error, message = failure_of(await stack.run())
    assert error == "llama_deploy.errors.SerializationError"
    assert "event Event.held" in message
    assert words in message


class Kept(Event):
    held: Any


class Keeps(Workflow):
    """Keeps keys that are the same in JSON, and is stored in between."""

    def __init__(self) -> None:
        super().__init__(timeout=None)

    @step
    async def keep(self, ctx: Context, ev: StartEvent) -> Kept:
        await ctx.store.set("held", KEYS)
        return Kept(held=KEYS)

    @step
    async def wait(self, ctx: Context, ev: Kept) -> StopEvent:
        await ctx.wait_for_event(HumanResponseEvent)
        both = [await ctx.store.get("held"), ev.held]
        return StopEvent(result=[repr(sorted(held.items(), key=repr)) for held in both])


KEYS = {1: "a", "1": "b", None: "e", "None": "f"}


async def test_keys_that_are_the_same_in_json_are_kept_in_a_run(stack: Stack) -> None:
    async with stack.serving(stack.service(Keeps, idle_timeout=0)):
        task_id = await stack.submit()

        async def is_parked() -> bool:
            return await stack.is_parked(task_id)

        await eventually(is_parked)
        await stack.send(task_id, HumanResponseEvent())
        assert result_of(await stack.end(task_id)) == [repr(sorted(KEYS.items(), key=repr))] * 2
