"""What tests subtract from times that they measure on a busy computer."""

from __future__ import annotations

import os

import pytest
from tests.pulse import Beat, Pulse

CPUS = os.cpu_count() or 1


def test_a_quiet_computer_takes_nothing_off() -> None:
    quiet = Pulse(Beat(at=n / 10, late=0.0, running=2 * CPUS) for n in range(100))
    assert (quiet.lateness(1.0, 3.0), quiet.slowness(1.0, 3.0)) == (0.0, 1.0)
    assert quiet.idle_seconds(1.0, 3.0) == 2.0


def test_late_turns_count_for_what_happened_meanwhile() -> None:
    pulse = Pulse([Beat(at=1.0, late=0.1, running=1), Beat(at=5.0, late=2.0, running=1)])
    assert pulse.idle_seconds(0.5, 2.5) == pytest.approx(2.0 - 5 * 0.1)
    assert pulse.lateness(2.5, 3.5) == 2.0, "a delay that had begun before"


def test_processes_that_want_to_run_make_all_slower() -> None:
    crowded = Pulse(Beat(at=n / 10, late=0.0, running=8 * CPUS) for n in range(100))
    assert crowded.idle_seconds(1.0, 9.0) == 2.0
