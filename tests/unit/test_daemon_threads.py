"""Threads that nobody joins, and that are replaced when nobody waits for them."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from llama_deploy.concurrency.daemon_threads import (
    DaemonExecutor,
    DaemonThreads,
    Job,
    call_for,
    in_own_thread,
)
from llama_deploy.testing.conditions import eventually

PATIENCE = 10.0


class Held:
    """A job that runs until it is released."""

    def __init__(self, label: str = "") -> None:
        self.began, self.gate = threading.Event(), threading.Event()
        self.job = Job(self._run, label=label)

    def _run(self) -> None:
        self.began.set()
        self.gate.wait(PATIENCE)


@pytest.fixture
def threads() -> Iterator[DaemonThreads]:
    threads = DaemonThreads("pool", limit=2)
    yield threads
    threads.close()


def call_in(threads: DaemonThreads) -> asyncio.Future[None]:
    """Run a job; return when it has ended."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    threads.submit(Job(partial(call_for, ended, loop, lambda: None)))
    return ended


def names() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("pool-"))


async def test_threads_are_reused_and_limited(threads: DaemonThreads) -> None:
    for _ in range(20):
        await asyncio.wait_for(call_in(threads), PATIENCE)
    assert len(names()) <= 2
    first, second, third = held = [Held("a"), Held("b"), Held("c")]
    for each in held:
        threads.submit(each.job)
    assert first.began.wait(PATIENCE)
    assert second.began.wait(PATIENCE)
    assert not third.began.is_set()
    assert sorted(name[-2:] for name in names()) == [" a", " b"]
    second.gate.set()
    assert third.began.wait(PATIENCE)
    assert sorted(name[-2:] for name in names()) == [" a", " c"]
    first.gate.set()
    third.gate.set()


async def test_lost_threads_are_replaced_and_end_with_their_jobs(threads: DaemonThreads) -> None:
    lost = [Held("hangs") for _ in range(6)]
    for each in lost:
        threads.submit(each.job)
        assert each.began.wait(PATIENCE)
        assert threads.abandon(each.job)
        assert not threads.abandon(each.job), "it is lost already"
    assert threads.lost == 6
    assert names() == [f"pool-{number} hangs (lost)" for number in range(1, 7)]
    later = Held()
    threads.submit(later.job)
    assert later.began.wait(PATIENCE)
    for each in (*lost, later):
        each.gate.set()
    await eventually(lambda: threads.lost == 0)
    await eventually(lambda: len(names()) == 1)


async def test_a_waiting_job_that_is_abandoned_does_not_begin(threads: DaemonThreads) -> None:
    running, waiting, later = [Held(), Held()], Held(), Held()
    for each in (*running, waiting, later):
        threads.submit(each.job)
    assert not threads.abandon(waiting.job)
    for each in (*running, later):
        each.gate.set()
        assert each.began.wait(PATIENCE)
    assert (threads.lost, waiting.began.is_set()) == (0, False)


async def test_closing_ends_idle_threads_and_those_whose_jobs_end(threads: DaemonThreads) -> None:
    held = [Held() for _ in range(3)]
    for each in held:
        threads.submit(each.job)
    assert held[0].began.wait(PATIENCE)
    threads.close()
    threads.close()
    with pytest.raises(RuntimeError, match="closed"):
        threads.submit(Held().job)
    for each in held:
        each.gate.set()
    await eventually(lambda: not names())
    assert held[2].began.is_set(), "what was submitted before runs"


async def test_a_call_that_nobody_waits_for_does_not_take_the_place_of_others() -> None:
    executor = DaemonExecutor("pool", limit=1)
    loop = asyncio.get_running_loop()
    gate, began = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        gate.wait(PATIENCE)

    for _ in range(3):
        began.clear()
        hanging = loop.run_in_executor(executor, hang)
        await eventually(began.is_set)
        hanging.cancel()
        assert await asyncio.wait_for(loop.run_in_executor(executor, lambda: 42), PATIENCE) == 42
    gate.set()
    executor.shutdown()
    await eventually(lambda: not names())


class OddError(Exception):
    pass


def fail() -> None:
    raise OddError


def by_executor() -> asyncio.Future[None]:
    return asyncio.get_running_loop().run_in_executor(DaemonExecutor("pool", limit=1), fail)


def by_own_thread() -> asyncio.Future[None]:
    return in_own_thread("pool-own", fail)


@pytest.mark.parametrize("call", [by_executor, by_own_thread])
async def test_errors_are_raised_and_leave_no_cycle(call: Callable[[], asyncio.Future[None]]) -> None:
    seen: list[weakref.ref[OddError]] = []
    gc.disable()
    try:
        try:
            await call()
        except OddError as exc:
            seen.append(weakref.ref(exc))
        assert len(seen) == 1
        await eventually(lambda: seen[0]() is None)
    finally:
        gc.enable()


def test_the_process_ends_without_them() -> None:
    program = """
import asyncio, time
from llama_deploy.concurrency.daemon_threads import DaemonExecutor, in_own_thread
async def main():
    asyncio.get_running_loop().set_default_executor(DaemonExecutor("pool", limit=1))
    in_own_thread("own", lambda: time.sleep(60))
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    await asyncio.sleep(0)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
