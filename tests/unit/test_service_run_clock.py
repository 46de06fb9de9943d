"""How long a run works and waits."""

from __future__ import annotations

import asyncio
import time

from llama_deploy.services.run.run_clock import RunClock
from llama_deploy.testing.conditions import eventually


class Bells:
    """Counts what rings."""

    def __init__(self) -> None:
        self.timed_out = 0
        self.idle = 0

    def clock(self, *, timeout: float | None, idle_timeout: float | None, spent: float = 0.0) -> RunClock:
        return RunClock(
            timeout=timeout,
            idle_timeout=idle_timeout,
            on_timeout=self._time_out,
            on_idle=self._idle,
            spent=spent,
        )

    def _time_out(self) -> None:
        self.timed_out += 1

    def _idle(self) -> None:
        self.idle += 1


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
    clock.stop()
    later = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.01, later.set_result, None)
    await later
    assert (bells.timed_out, bells.idle) == (0, 0)
