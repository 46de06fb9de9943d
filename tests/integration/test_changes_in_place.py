"""What a step changes inside an attribute of an object that its run has for itself makes the run volatile."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy.types import Durability, TaskView
from tests.integration.in_process import Stack, result_of, running_stack


class Memory(BaseModel):
    messages: list[str] = []


@dataclass
class Notes:
    lines: list[str] = field(default_factory=list)


class Client:
    """Of a class that cannot be stored; it counts for itself."""

    def __init__(self) -> None:
        self.calls = 0


class Second(Event):
    pass


class Holds(Workflow):
    """Changes what it holds in its first step."""

    def __init__(self, held: Any, change: Callable[[Any], object]) -> None:
        super().__init__()
        self.held = held
        self.change = change

    @step
    async def first(self, ev: StartEvent) -> Second:
        self.change(self.held)
        return Second()

    @step
    def second(self, ev: Second) -> StopEvent:
        return StopEvent(result=threading.get_ident())


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def run(stack: Stack, workflow: Any, **settings: Any) -> TaskView:
    async with stack.serving(stack.service(workflow, **settings)):
        view = await stack.run()
    result_of(view)
    return view


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (list, lambda held: held.append(1)),
        (lambda: [1, 2], lambda held: held.reverse()),
        (dict, lambda held: held.update(a=1)),
        (lambda: {"a": 1}, lambda held: held.update(a=2)),
        (lambda: {"a": {"b": [1]}}, lambda held: held["a"]["b"].append(2)),
        (lambda: ([],), lambda held: held[0].append(1)),
        (set, lambda held: held.add(1)),
        (deque, lambda held: held.append(1)),
        (Counter, lambda held: held.update("a")),
        (lambda: defaultdict(list), lambda held: held["a"].append(1)),
        (bytearray, lambda held: held.extend(b"a")),
        (Memory, lambda held: held.messages.append("hello")),
        (Memory, lambda held: setattr(held, "messages", ["hello"])),
        (Notes, lambda held: held.lines.append("hello")),
        (lambda: [Notes()], lambda held: held[0].lines.append("hello")),
    ],
)
async def test_a_change_of_data_is_noticed(
    stack: Stack, make: Callable[[], Any], change: Callable[[Any], object]
) -> None:
    view = await run(stack, lambda: Holds(make(), change))
    assert view.durability is Durability.VOLATILE
    assert view.volatile_reason == "the step 'first' has changed `self.held`"


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: {"a": [1]}, lambda held: held["a"]),
        (lambda: [1, 2], sorted),
        (Client, lambda held: setattr(held, "calls", 1)),
        (lambda: [Client()], lambda held: setattr(held[0], "calls", 1)),
    ],
)
async def test_reading_and_what_clients_do_inside_are_none(
    stack: Stack, make: Callable[[], Any], change: Callable[[Any], object]
) -> None:
    view = await run(stack, lambda: Holds(make(), change))
    assert (view.durability, view.volatile_reason) == (Durability.STEP, None)


async def test_an_instance_is_shared_so_what_is_inside_belongs_to_all_runs(stack: Stack) -> None:
    view = await run(stack, Holds([], lambda held: held.append(1)))
    assert view.durability is Durability.STEP


async def test_a_list_that_contains_itself(stack: Stack) -> None:
    held: list[Any] = []
    held.append(held)
    view = await run(stack, lambda: Holds(held, len))
    assert view.durability is Durability.STEP


async def test_a_strict_service_does_not_look(stack: Stack) -> None:
    view = await run(stack, lambda: Holds([], lambda held: held.append(1)), durability="step")
    assert view.durability is Durability.STEP
