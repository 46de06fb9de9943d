"""The comparison of two revisions: the bound of a ratio, and what passes."""

from __future__ import annotations

import math

import pytest
from benchmarks.against import LIMITS, MIN_PAIRS, Pairs, compare, upper_bound
from rich.console import Console


def test_the_bound_of_ten_pairs_is_the_second_largest_ratio() -> None:
    # P(at most 7 of 10 below the median) is 94.5 %, of 8 it is 98.9 %.
    assert upper_bound([1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.08, 9.0]) == 1.08


def test_the_smallest_sample_has_its_largest_ratio_as_bound() -> None:
    assert upper_bound([1.0, 1.1, 0.9, 1.2, 1.05]) == 1.2
    assert len([1.0, 1.1, 0.9, 1.2, 1.05]) == MIN_PAIRS


def test_too_few_values_have_no_bound() -> None:
    assert upper_bound([1.0] * (MIN_PAIRS - 1)) == math.inf


def pairs_of(**changes: float) -> Pairs:
    values = {limit.figure: [(100.0, 100.0)] * 10 for limit in LIMITS}
    return Pairs("abc", {**values, **{name: [(100.0, value)] * 10 for name, value in changes.items()}})


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"cpu_ms": 102.9}, True),
        ({"cpu_ms": 103.2}, False),
        ({"session_run_p50_ms": 109.0}, True),
        ({"session_run_p50_ms": 111.0}, False),
        ({"tasks_per_second": 92.0}, True),
        ({"tasks_per_second": 90.0}, False),
    ],
)
def test_a_figure_that_is_too_much_worse_fails_the_comparison(
    changes: dict[str, float], *, passed: bool
) -> None:
    assert pairs_of(**changes).passed is passed


def test_a_missing_figure_or_a_failed_run_fails_the_comparison() -> None:
    missing = pairs_of()
    del missing.values["cpu_ms"]
    failed = pairs_of()
    failed.failures.append("a task was lost")
    assert not missing.passed
    assert not failed.passed


def test_an_unknown_revision_and_too_few_pairs_are_errors() -> None:
    console = Console(quiet=True)
    with pytest.raises(ValueError, match="no-such-revision"):
        compare("no-such-revision", pairs=10, quick=True, console=console)
    with pytest.raises(ValueError, match="at least 5"):
        compare("HEAD", pairs=2, quick=True, console=console)
