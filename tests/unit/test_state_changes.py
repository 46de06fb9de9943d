"""How a stored state leads back to the one before, and that finding out is cheap."""

from __future__ import annotations

import json
from collections.abc import Callable
from time import process_time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from llama_deploy.types.run_points import mark_of
from llama_deploy.types.state_changes import MAX_CHANGE_BYTES, StateChange, dump_change

JSON = st.recursive(
    st.none() | st.integers(-9, 9) | st.text('ab,:"', max_size=5),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text("kl:", max_size=2), each, max_size=4),
    max_leaves=12,
)
MANY = 400_000


def sealed(value: Any, signature: str = "") -> str:
    return f"{signature}\n{json.dumps(value)}"


def undone(before: str | None, after: str) -> str | None:
    change = StateChange.between(before, after)
    assert change is not None
    return change.undone(after)


@given(JSON, JSON, st.sampled_from(["", "old"]), st.sampled_from(["", "new"]))
@example({"k": "a,b", "l": 1}, {"k": "a,b,a", "l": 1}, "old", "new")
@example({"k": 1, "l": 2}, {"l": 2, "k": 1}, "", "")
def test_a_change_leads_back_to_the_text_before(before: Any, after: Any, one: str, other: str) -> None:
    old, new = sealed(before, one), sealed(after, other)
    text = dump_change(old, new)
    assert text is not None
    change = StateChange.model_validate_json(text)
    assert change.undone(new) == old
    assert (change.before, change.after) == (mark_of(old), mark_of(new))


@given(st.text(), st.text())
def test_any_two_texts_are_possible(old: str, new: str) -> None:
    assert undone(old, new) == old


def test_before_the_first_state_there_is_none() -> None:
    assert undone(None, sealed({"a": 1})) is None


def test_a_change_takes_what_has_changed_and_not_the_whole_state() -> None:
    long = {f"key {number}": "x" * 1000 for number in range(100)}
    before = {"first": 1, **long, "log": ["a"], "text": "y" * 9000, "last": 1}
    after = {"first": 2, **long, "log": ["a", "b"], "text": "y" * 9000 + "z", "last": 2, "new": 3}
    text = dump_change(sealed(before, "old"), sealed(after, "new"))
    assert text is not None
    assert len(text) < 300


@pytest.mark.parametrize("character", ["a", "é", "\U0001f600"])
def test_a_change_that_has_too_many_bytes_is_left_out(character: str) -> None:
    fits = MAX_CHANGE_BYTES // len(character.encode()) - 100
    assert dump_change(sealed("") + character * fits, sealed("b")) is not None
    assert dump_change(sealed("") + character * (fits + 200), sealed("b")) is None


@pytest.mark.parametrize(
    "splices",
    [[[5, 1, "a"], [4, 1, "b"]], [[0, 3, "a"], [2, 1, "b"]], [[-1, 1, "a"]], [[1, -1, "a"]]],
    ids=["in another order", "overlapping", "before the text", "a negative length"],
)
def test_splices_that_would_repeat_parts_of_a_state_are_not_read(splices: list[list[object]]) -> None:
    with pytest.raises(ValidationError, match="splices"):
        StateChange.model_validate({"after": "a", "before": "b", "splices": splices})


NUMBERS = list(range(100_000, 100_000 + MANY))


@pytest.mark.parametrize(
    "after",
    [
        [0, *NUMBERS[1:-1], 0],
        [number + index % 2 for index, number in enumerate(NUMBERS)],
        NUMBERS[::-1],
        [*NUMBERS, 0],
    ],
    ids=["both ends", "every second value", "all", "one more"],
)
def test_a_change_takes_no_longer_than_writing_the_state(after: list[int]) -> None:
    old, new = sealed(NUMBERS, "old"), sealed(after, "new")
    assert best_of(lambda: dump_change(old, new)) < 2 * best_of(lambda: json.dumps(after))


def best_of(work: Callable[[], object]) -> float:
    """Return how many seconds of the processor some work takes."""

    def once() -> float:
        began = process_time()
        work()
        return process_time() - began

    return min(once() for _ in range(5))


def test_of_many_values_only_what_is_between_the_ends_is_compared() -> None:
    few = [*NUMBERS[:100], 0, *NUMBERS[100:]]
    assert dump_change(sealed(NUMBERS, "old"), sealed(few, "new")) is not None, "signatures always differ"
    both = [0, *NUMBERS[1:-1], 0]
    assert dump_change(sealed(NUMBERS), sealed(both)) is None
    several = [*NUMBERS[:5], 0, *NUMBERS[5:8000], 0]
    text = dump_change(sealed(NUMBERS[:8000]), sealed(several))
    assert text is not None, "what is between fits, if it is replaced as a whole"
    assert StateChange.model_validate_json(text).undone(sealed(several)) == sealed(NUMBERS[:8000])
