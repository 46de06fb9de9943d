"""`cli.text_tables`: what people see at any width, and that ids can always be copied."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from llama_deploy.cli.text_tables import age, aligned

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ROWS = [("task", "since", ""), ("a" * 36, "9 s", "the disk is full"), ("b", "12 min", "")]


def test_columns_begin_below_each_other() -> None:
    assert list(aligned(ROWS, width=None, right=1)) == [
        f"{'task':36}   since",
        f"{'a' * 36}     9 s  the disk is full",
        f"{'b':36}  12 min",
    ]


def test_a_terminal_cuts_the_end_of_a_row() -> None:
    lines = list(aligned(ROWS, width=50, right=1))
    assert lines[1] == f"{'a' * 36}     9 s  the…"
    assert max(map(len, lines)) == 50


def test_a_narrow_terminal_never_cuts_an_id() -> None:
    assert list(aligned(ROWS[1:2], width=20)) == ["a" * 36]


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_an_age_has_the_largest_unit(seconds: float, text: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), now=NOW) == text
