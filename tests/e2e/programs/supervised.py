"""Workflows whose steps block, and write down when they begin and end."""

import asyncio
import ctypes
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

HOLDING = ctypes.PyDLL(None)
"""The C library, called without releasing the interpreter."""


def note(word: str, name: str) -> None:
    """Append a line to the ledger."""
    line = f"{word} {name} {os.getpid()} {time.monotonic()}\n"
    ledger = os.open("ledger.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(ledger, line.encode())
    os.close(ledger)


def hold(seconds: float) -> None:
    """Hold the interpreter: no other thread of the process runs."""
    HOLDING.usleep(int(seconds * 1e6))


def wait(seconds: float) -> None:
    """Block this thread only."""
    time.sleep(seconds)


def match(_: float) -> None:
    """Backtrack for years."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def spin(_: float) -> None:
    """Never end, but let other threads run from time to time."""
    while True:
        pass


def leave_process(seconds: float) -> None:
    """Start a process that outlives this one."""
    show = "import os, pathlib, sys; pathlib.Path('left.txt').write_text(repr(dict(os.environ)) + '\\n'"
    show += " + '\\n'.join(os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
    show += " if os.path.exists(f'/proc/self/fd/{n}'))); import time; time.sleep(float(sys.argv[1]))"
    left = subprocess.Popen([sys.executable, "-c", show, "60"], close_fds=False)
    note("left", str(left.pid))
    time.sleep(seconds)


def fork_pool(seconds: float) -> None:
    """Start forked processes, and wait for them."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map_async(forked, [seconds, seconds])
        time.sleep(seconds)


def forked(seconds: float) -> None:
    note("left", str(os.getpid()))
    time.sleep(min(seconds, 60))


def end_process(_: float) -> None:
    """End the process as if all were well."""
    os._exit(0)


ACTS = {each.__name__: each for each in (hold, wait, match, spin, leave_process, fork_pool, end_process)}


class Does(Workflow):
    """Calls a function in the thread of the event loop."""

    @step
    async def act(self, ev: StartEvent) -> StopEvent:
        note("begin", ev.name)
        ACTS[ev.what](ev.seconds)
        note("end", ev.name)
        return StopEvent(result=ev.name)


class DoesInThread(Workflow):
    """Calls a function in a thread."""

    @step
    def act_in_thread(self, ev: StartEvent) -> StopEvent:
        note("begin", ev.name)
        ACTS[ev.what](ev.seconds)
        note("end", ev.name)
        return StopEvent(result=ev.name)


class Sleeps(Workflow):
    """Does nothing for a while."""

    @step
    async def sleep(self, ev: StartEvent) -> StopEvent:
        note("begin", ev.name)
        await asyncio.sleep(ev.seconds)
        note("end", ev.name)
        return StopEvent(result=ev.name)


class NeverEnds(Workflow):
    """Ignores that it is cancelled."""

    @step
    async def ignore(self, ev: StartEvent) -> StopEvent:
        note("begin", ev.name)
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue


def does() -> Does:
    return Does(timeout=None)


def does_in_thread() -> DoesInThread:
    return DoesInThread(timeout=None)


def sleeps() -> Sleeps:
    return Sleeps(timeout=None)


def never_ends() -> NeverEnds:
    return NeverEnds(timeout=None)


if Path("fail").exists() and not Path("second").exists():
    # The next start of a process fails, and those after it do not.
    Path("second").touch()
    os._exit(3)
