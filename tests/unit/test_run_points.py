"""Points of a run as text, and their order."""

from __future__ import annotations

import pytest

from llama_deploy.types.run_points import RunPoint
from llama_deploy.types.step_history import read_step_id, step_id


@pytest.mark.parametrize(
    ("point", "text"),
    [
        (RunPoint(0), "0"),
        (RunPoint(12), "12"),
        (RunPoint(3, 1), "3.1"),
        (RunPoint(3, 0, "a1b2"), "3.0.a1b2"),
        (RunPoint(0, 2, "a1b2"), "0.2.a1b2"),
    ],
)
def test_a_point_is_read_as_it_was_written(point: RunPoint, text: str) -> None:
    assert str(point) == text
    assert RunPoint.read(text) == point


@pytest.mark.parametrize(
    "text", [None, "", ".", "a", "1.b", "-1", "1.-1", "²", "9" * 40, "1.", ".1", "1..a", "1. 2"]
)
def test_what_is_not_a_point_is_none(text: str | None) -> None:
    assert RunPoint.read(text) is None


def test_each_write_of_an_entry_or_a_snapshot_leads_to_a_later_point() -> None:
    points = [RunPoint(0), RunPoint(1), RunPoint(1, 1), RunPoint(2, 1), RunPoint(2, 2)]
    assert [point.writes_before for point in points] == [0, 1, 2, 3, 4]
    assert [point.is_beginning for point in points] == [True, False, False, False, False]


@pytest.mark.parametrize(
    "text", ["", "1", "1.", ".1", "0.0", "1.0", "1.2.3", "1,2", " 1.2", "1.²", "1." + "9" * 30]
)
def test_what_is_not_the_id_of_a_step_is_none(text: str) -> None:
    assert read_step_id(text) is None


def test_the_id_of_a_step_has_its_attempt_and_its_number() -> None:
    assert step_id(2, 5) == "2.5"
    assert read_step_id("2.5") == (2, 5)
