"""Workflows that do not end when they are asked to."""

import asyncio
import contextlib
import ctypes
import sys
import threading
import time

from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent


class Sleeps(Workflow):
    """Sleeps in a thread."""

    @step
    def work(self, ev: StartEvent) -> StopEvent:
        print("begun", file=sys.stderr, flush=True)
        time.sleep(40)
        return StopEvent()


class Spins(Workflow):
    """Blocks the event loop with Python code."""

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        print("begun", file=sys.stderr, flush=True)
        await asyncio.sleep(0.3)
        while time.monotonic():
            pass
        return StopEvent()


class Blocks(Workflow):
    """Blocks the event loop with a C function that does not look for signals."""

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        print("begun", file=sys.stderr, flush=True)
        await asyncio.sleep(0.3)
        until = time.monotonic() + 40
        while time.monotonic() < until:
            ctypes.CDLL(None).select(0, None, None, None, (ctypes.c_long * 2)(40, 0))
        return StopEvent()


class Resists(Workflow):
    """Ignores its cancellation."""

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        print("begun", file=sys.stderr, flush=True)
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(40)


class Leaves(Workflow):
    """Leaves a thread behind for which Python waits."""

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        threading.Thread(target=time.sleep, args=(40,), name="left-behind").start()
        print("begun", file=sys.stderr, flush=True)
        return StopEvent()
