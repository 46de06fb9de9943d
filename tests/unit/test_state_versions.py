"""Which state a session had when a task ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.control_plane.decisions.state_versions import (
    KEPT_STATES,
    MAX_KEPT_CHARACTERS,
    replaced,
    state_at,
)
from llama_deploy.state_stores.records import SavedStateRecord, SessionRecord
from llama_deploy.testing.records import NOW, a_session


def at(seconds: int) -> datetime:
    return NOW + timedelta(seconds=seconds)


def written(
    times: Sequence[int], *, keep: int = KEPT_STATES, large: int | None = None
) -> tuple[SessionRecord, list[SavedStateRecord]]:
    """Return a session whose state was written at these times, and what is kept of it."""
    session, saved = a_session(), list[SavedStateRecord]()
    for number, time in enumerate(times, start=1):
        if (earlier := replaced(session)) is not None:
            saved.append(earlier)
        text = "x" * MAX_KEPT_CHARACTERS if number == large else ""
        state = f'{{"n": {number}, "text": "{text}"}}'
        session = session._replace(state=state, version=number, updated_at=at(time))
    return session, [each for each in saved if each.version > len(times) - 1 - keep]


@given(st.lists(st.integers(1, 100), max_size=12).map(sorted), st.integers(0, 101))
def test_it_is_the_last_one_that_was_written_until_then(times: list[int], asked: int) -> None:
    session, saved = written(times)
    number = sum(time <= asked for time in times)
    expected = f'{{"n": {number}, "text": ""}}' if number else "{}"
    assert state_at(at(asked), session, saved) == expected


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 41))
def test_what_was_not_kept_is_not_made_up(count: int, keep: int, asked: int) -> None:
    session, saved = written(range(1, count + 1), keep=keep)
    number = min(asked, count)
    found = state_at(at(asked), session, saved)
    is_known_empty = number == 0 and count <= keep + 1  # it was before version 1, which is known
    if number >= count - keep or is_known_empty:
        assert found == (f'{{"n": {number}, "text": ""}}' if number else "{}")
    else:
        assert found is None


@pytest.mark.parametrize("asked", range(1, 7))
def test_a_large_state_is_not_kept_but_those_before_it_are(asked: int) -> None:
    session, saved = written(range(1, 6), large=3)
    assert all(len(each.state) < MAX_KEPT_CHARACTERS for each in saved)
    found = state_at(at(asked), session, saved)
    number = min(asked, 5)
    assert found == (None if asked == 3 else f'{{"n": {number}, "text": ""}}')


def test_the_empty_state_of_a_new_session_is_not_kept_but_that_of_a_fork_is() -> None:
    assert replaced(a_session()) is None
    assert replaced(a_session()._replace(state='{"a": 1}')) is not None
