"""The history of the steps of an attempt, and its form in messages and rows."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.services.run.steps.step_history import MAX_KEPT, MAX_PRESENT, StepHistory, current_step
from llama_deploy.types.step_history import MAX_STEP_NAME, StepEnd, decode_steps, encode_steps

ENDS = st.builds(
    StepEnd,
    step=st.text(max_size=20),
    began_ms=st.integers(0, 10**13 // 2),
    took_ms=st.integers(0, 10**12),
    events=st.integers(0, 10**6),
    error=st.none() | st.text(min_size=1, max_size=20),
)


@given(st.lists(ENDS, max_size=5))
def test_steps_come_back(ends: list[StepEnd]) -> None:
    found = list(decode_steps(encode_steps(ends), attempt=7))
    assert [(each.step, each.events, each.error, each.attempt) for each in found] == [
        (end.step, end.events, end.error, 7) for end in ends
    ]
    assert [each.ended_at - each.began_at for each in found] == [
        timedelta(milliseconds=end.took_ms) for end in ends
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "null",
        "[" * 5000,
        '[["a"], 3, null, ["a", "b", 1, 1], ["a", -1, 1, 1], ["a", 1, 1e99, 1]]',
        '[["a", 1, 1, -1], ["a", 1, 1, 9007199254740993], ["a", 1, 1, true], ["a", true, 1, 1]]',
    ],
)
def test_what_has_another_form_is_left_out(text: str) -> None:
    assert list(decode_steps(text, attempt=1)) == []


def test_values_of_a_newer_release_are_ignored() -> None:
    (step,) = decode_steps('[["a", 1, 2, 3, null, {"retry": 1}]]', attempt=1)
    assert (step.step, step.error) == ("a", None)


def test_a_report_takes_the_steps_that_have_ended() -> None:
    history = StepHistory()
    assert history.untold() is None
    first, second = history.begin("first"), history.begin("second")
    assert [each.step for each in history.present()] == ["first", "second"]
    history.end(second, ValueError("no"))
    told = history.untold()
    assert told is not None
    assert told.first == 0
    assert [(each.step, each.error) for each in decode_steps(told.steps, attempt=1)] == [
        ("second", "ValueError")
    ]
    history.end(first)
    history.told(1)
    rest = history.untold()
    assert rest is not None
    assert rest.first == 1
    assert [each.step for each in decode_steps(rest.steps, attempt=1)] == ["first"]
    history.told(history.count)
    assert history.untold() is None


def test_events_that_are_streamed_at_the_very_end_of_a_step_count() -> None:
    history = StepHistory()
    step = history.begin("only")
    assert current_step.get() is step
    history.end(step)
    step.events += 1
    told = history.untold()
    assert told is not None
    assert [each.events for each in decode_steps(told.steps, attempt=1)] == [1]


def test_of_many_steps_the_last_ones_are_kept() -> None:
    history = StepHistory()
    for number in range(MAX_KEPT + 10):
        history.end(history.begin(f"step{number}"))
    told = history.untold()
    assert told is not None
    assert told.first == 10
    assert len(json.loads(told.steps)) == MAX_KEPT
    running = [history.begin("x" * 500) for _ in range(MAX_PRESENT + 5)]
    assert len(history.present()) == MAX_PRESENT
    assert {len(each.step) for each in history.present()} == {MAX_STEP_NAME}
    for each in running:
        history.forget(each)
    assert history.present() == []
