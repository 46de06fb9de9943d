"""What tests measure is told at the end of the run, whichever process measured it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import pytest

_PROPERTY: Final = "figure"

Tell: TypeAlias = Callable[[str], None]


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Have a line shown at the end of the run."""
    return lambda line: record_property(_PROPERTY, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the lines of all tests that ended."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    lines = [line for report in reports for name, line in report.user_properties if name == _PROPERTY]
    if lines:
        terminalreporter.section("figures")
        for line in sorted(lines):
            terminalreporter.line(line)
