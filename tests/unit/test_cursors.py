"""Cursors of pages."""

from __future__ import annotations

import base64
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.control_plane.decisions.cursors import MAX_CURSOR_LENGTH, decode_cursor, encode_cursor
from llama_deploy.errors import InvalidCursorError
from llama_deploy.web.problems import from_problem, to_problem

LIST = {"list": "tasks", "status": ["failed"], "order": "newest"}
INTEGERS = st.integers(min_value=-(2**63) + 1, max_value=2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\x1f"), max_size=255)


@given(INTEGERS, INTEGERS, TEXTS)
def test_a_cursor_carries_its_position_in_text_that_fits_a_url(at: int, place: int, key: str) -> None:
    cursor = encode_cursor([at, place, key], of=LIST)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", cursor)
    assert decode_cursor(cursor, of=LIST, kinds=[int, int, str]) == (at, place, key)


def test_the_order_in_which_a_filter_is_written_does_not_matter() -> None:
    cursor = encode_cursor([1], of=LIST)
    assert decode_cursor(cursor, of=dict(reversed(LIST.items())), kinds=[int]) == (1,)


def test_an_id_of_the_greatest_length_fits_into_a_cursor() -> None:
    assert len(encode_cursor([2**62, "\U0001f600" * 100], of=LIST)) < MAX_CURSOR_LENGTH
    assert len(encode_cursor([2**62, "x" * 255], of=LIST)) < MAX_CURSOR_LENGTH


@pytest.mark.parametrize("other", [{**LIST, "order": "oldest"}, {**LIST, "status": []}, {"list": "inbox"}])
def test_a_cursor_of_another_list_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(InvalidCursorError, match="another filter or order"):
        decode_cursor(encode_cursor([1], of=other), of=LIST, kinds=[int])


def _encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "ä",
        "a b",
        "next page",
        _encoded({}),
        _encoded([]),
        _encoded([1]),
        _encoded([2, "digest", 1]),
        _encoded(None),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        base64.urlsafe_b64encode(b"[" * 1000).decode(),
        "A" * (MAX_CURSOR_LENGTH + 1),
    ],
)
def test_garbage_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursorError):
        decode_cursor(cursor, of=LIST, kinds=[int])


@given(st.text(max_size=100))
def test_any_text_is_a_cursor_or_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursorError):
        decode_cursor(text, of=LIST, kinds=[int])


@pytest.mark.parametrize("value", [True, 1.5, None, "1", 2**63, [1]])
def test_a_position_with_values_of_other_types_is_refused(value: object) -> None:
    cursor = encode_cursor([value], of=LIST)  # type: ignore[list-item]
    with pytest.raises(InvalidCursorError, match="is not a cursor"):
        decode_cursor(cursor, of=LIST, kinds=[int])


@pytest.mark.parametrize("value", ["a\0b", "\ud800", "acme\x1ft", 1])
def test_a_text_that_no_row_has_is_refused(value: object) -> None:
    cursor = encode_cursor([value], of=LIST)  # type: ignore[list-item]
    with pytest.raises(InvalidCursorError, match="is not a cursor"):
        decode_cursor(cursor, of=LIST, kinds=[str])


def test_the_error_is_a_problem_of_the_request() -> None:
    problem = to_problem(InvalidCursorError("no cursor"))
    assert problem["status"] == 422
    error = from_problem(422, json.dumps(problem).encode(), url="http://localhost:8000/tasks")
    assert isinstance(error, InvalidCursorError)
