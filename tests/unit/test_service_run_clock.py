"""How long a run works and waits."""

from __future__ import annotations

import asyncio
import sys
import time
from types import FrameType
from typing import Any

import pytest

from llama_deploy.services.run import run_clock, time_budget
from llama_deploy.services.run.run_clock import RunClock
from llama_deploy.services.run.time_budget import TimeBudget
from llama_deploy.testing.conditions import eventually


class Bells:
    """Counts what rings."""

    def __init__(self) -> None:
        self.timed_out = self.noted = self.idle = self.stuck = 0

    def budget(self, limit: float | None, *, used: float = 0.0) -> TimeBudget:
        return TimeBudget(limit, on_over=self._time_out, used=used, on_progress=self._note)

    def clock(self, *, timeout: float | None, idle_timeout: float | None, spent: float = 0.0) -> RunClock:
        return RunClock(
            self.budget(timeout, used=spent),
            idle_timeout=idle_timeout,
            on_idle=self._idle,
            on_stuck=self._fail_stuck,
        )

    def _time_out(self) -> None:
        self.timed_out += 1

    def _note(self) -> None:
        self.noted += 1

    def _idle(self) -> None:
        self.idle += 1

    def _fail_stuck(self) -> None:
        self.stuck += 1


async def test_a_budget_is_used_while_time_counts() -> None:
    bells = Bells()
    budget = bells.budget(0.2, used=0.1)
    await pass_(0.05)
    assert budget.seconds == 0.1
    budget.count(counts=True)
    await pass_(0.03)
    budget.count(counts=False)
    used = budget.seconds
    assert 0.13 <= used < 0.2
    await pass_(0.2)
    assert (budget.seconds, bells.timed_out) == (used, 0)
    budget.count(counts=True)
    await eventually(lambda: bells.timed_out == 1)
    assert budget.seconds >= 0.2
    budget.count(counts=False)
    budget.count(counts=True)
    await pass_(0.05)
    assert bells.timed_out == 1
    budget.stop()


async def test_a_budget_tells_how_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_budget, "NOTE_SECONDS", 0.02)
    bells, without_limit = Bells(), Bells()
    budgets = [bells.budget(1000), without_limit.budget(None)]
    for budget in budgets:
        budget.count(counts=True)
    await eventually(lambda: bells.noted >= 3)
    assert without_limit.noted == bells.timed_out == 0
    assert budgets[1].seconds >= 0.06
    for budget in budgets:
        budget.stop()
    noted = bells.noted
    await pass_(0.1)
    assert bells.noted == noted


async def test_a_run_that_is_stuck_uses_its_time_limit() -> None:
    bells = Bells()
    clock = bells.clock(timeout=0.1, idle_timeout=0.01)
    clock.stall()
    await eventually(lambda: bells.timed_out == 1)
    assert (bells.idle, bells.stuck) == (0, 0)
    clock.stop()


async def test_without_a_time_limit_a_run_is_not_stuck_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_clock, "MIN_PAUSE", 0.05)
    bells = Bells()
    clock = bells.clock(timeout=None, idle_timeout=0.01)
    clock.stall()
    clock.work()
    await pass_(0.1)
    assert bells.stuck == 0, "it went on"
    clock.stall()
    assert not clock.is_waiting
    await eventually(lambda: bells.stuck == 1)
    assert (bells.idle, bells.timed_out) == (0, 0)
    clock.stop()


async def test_waiting_does_not_count() -> None:
    bells = Bells()
    clock = bells.clock(timeout=0.2, idle_timeout=0.3)
    clock.work()
    clock.wait()
    await eventually(lambda: bells.idle == 1)
    assert bells.timed_out == 0
    assert clock.running_seconds < 0.2
    clock.work()
    await eventually(lambda: bells.timed_out == 1)
    assert bells.idle == 1
    clock.stop()


async def test_earlier_attempts_count() -> None:
    bells = Bells()
    clock = bells.clock(timeout=1000, idle_timeout=None, spent=1001)
    clock.work()
    await eventually(lambda: bells.timed_out == 1)
    clock.stop()


async def test_while_the_run_is_held_up_only_steps_count() -> None:
    bells = Bells()
    clock = bells.clock(timeout=0.3, idle_timeout=None)
    clock.work()
    with clock.held():
        spent = clock.running_seconds
        await pass_(0.4)
        assert clock.running_seconds == spent < 0.1
        clock.step_begins()
        clock.step_begins()
        await pass_(0.05)
        clock.step_ends()
        await pass_(0.05)
        clock.step_ends()
        spent = clock.running_seconds
        assert 0.1 <= spent < 0.25
        await pass_(0.3)
        assert clock.running_seconds == spent
        assert bells.timed_out == 0
    await eventually(lambda: bells.timed_out == 1)
    assert 0.3 <= clock.running_seconds < 0.6
    clock.stop()


async def test_a_step_that_is_at_work_too_long_is_out_of_time_though_the_run_is_held_up() -> None:
    bells = Bells()
    clock = bells.clock(timeout=0.1, idle_timeout=None)
    clock.work()
    with clock.held():
        clock.step_begins()
        await eventually(lambda: bells.timed_out == 1)
    clock.stop()


async def test_a_run_that_waits_and_is_held_up_works_only_when_it_goes_on() -> None:
    bells = Bells()
    clock = bells.clock(timeout=1000, idle_timeout=None)
    clock.work()
    clock.wait()
    spent = clock.running_seconds
    with clock.held():
        clock.work()
        assert not clock.is_waiting
        await pass_(0.05)
        assert clock.running_seconds == spent
    await pass_(0.05)
    assert clock.running_seconds >= spent + 0.05
    clock.stop()


async def pass_(seconds: float) -> None:
    """Let time pass."""
    begun = time.monotonic()
    await eventually(lambda: time.monotonic() - begun >= seconds)


async def test_a_stopped_clock_is_silent() -> None:
    bells = Bells()
    clock = bells.clock(timeout=0.0, idle_timeout=0.0)
    clock.work()
    clock.wait()
    clock.stop()
    clock.work()
    clock.stall()
    later = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.01, later.set_result, None)
    await later
    assert (bells.timed_out, bells.idle, bells.stuck) == (0, 0, 0)


async def test_the_time_used_can_be_read_in_another_thread() -> None:
    """Another thread may read it between any two instructions of a change."""
    budget, readings = Bells().budget(None), list[float]()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not TimeBudget.count.__code__:
            return None
        frame.f_trace_opcodes = True
        readings.append(budget.seconds)
        return trace

    begun = time.monotonic()
    budget.count(counts=True)
    await pass_(0.05)
    tracing = sys.gettrace()
    sys.settrace(trace)
    try:
        budget.count(counts=False)
    finally:
        sys.settrace(tracing)
    assert len(readings) > 5
    assert min(readings) >= 0.05
    assert max(readings) <= time.monotonic() - begun, "time was counted twice"
