"""What a workflow object holds is compared, whatever its authors keep there."""

from __future__ import annotations

from collections import UserDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Never

import pytest
from pydantic import BaseModel
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.services.run.steps.held_data import MAX_VALUES, HeldData


class Odd(dict[str, int]):
    """A dict that answers for itself."""

    def get(self, *_: Any, **__: Any) -> Any:
        raise LookupError

    def copy(self) -> Odd:
        raise NotImplementedError


class Proxy:
    """What stands for an object that does not exist yet, as web frameworks have it."""

    @property  # type: ignore[misc]
    def __class__(self) -> Never:  # type: ignore[override]
        raise RuntimeError("working outside of a request")


@dataclass(slots=True)
class Slotted:
    lines: list[str]


class Words(BaseModel):
    words: list[str] = ["a"]

    @cached_property
    def count(self) -> int:
        return len(self.words)


class Child(Workflow):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    @step
    async def only(self, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - names the event
        return StopEvent()


def changed(held: Any, change: Callable[[], object]) -> list[str]:
    before = HeldData.of({"held": held, "other": [1]})
    change()
    return before.changed()


def test_a_long_container_is_compared_by_its_length() -> None:
    held = [{"a": number} for number in range(MAX_VALUES)]
    assert changed(held, lambda: held[0].update(a=2)) == []
    assert changed(held, held.pop) == ["held"]


def test_what_comes_after_the_limit_is_not_compared() -> None:
    held = [[number] for number in range(MAX_VALUES // 2)]
    before = HeldData.of({"first": held, "second": [[each] for each in held]})
    held[0].append(1)
    assert before.changed() == ["first"]


def test_a_dict_that_answers_for_itself() -> None:
    held = Odd(a=1)
    assert changed(held, lambda: None) == []
    assert changed(held, lambda: held.update(a=2)) == ["held"]


def test_a_default_that_was_only_read() -> None:
    held: defaultdict[str, list[int]] = defaultdict(list)
    assert changed(held, lambda: held["a"]) == ["held"]


@pytest.mark.parametrize("make", [Proxy, UserDict, lambda: range(3), lambda: Odd, lambda: iter([1])])
def test_other_objects_are_not_looked_into(make: Callable[[], Any]) -> None:
    assert changed(make(), lambda: None) == []
    assert changed([make()], lambda: None) == []


def test_a_workflow_is_compared_where_its_own_steps_run() -> None:
    held = Child()
    assert changed(held, lambda: held.lines.append("a")) == []


def test_what_a_model_caches_is_none_of_its_data() -> None:
    held = Words()
    assert changed(held, lambda: held.count) == []
    assert changed(held, lambda: held.words.append("b")) == ["held"]


def test_a_dataclass_with_slots() -> None:
    held = Slotted([])
    assert changed(held, lambda: held.lines.append("a")) == ["held"]
    assert changed(held, lambda: setattr(held, "lines", [])) == ["held"]
