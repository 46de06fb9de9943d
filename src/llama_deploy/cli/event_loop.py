"""The event loop that a command runs workflows on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Future
from enum import StrEnum
from typing import Any, Final, TypeVar

from llama_deploy.concurrency.daemon_threads import DaemonExecutor

T = TypeVar("T")

_PATCHES_LOOPS: Final = "nest_asyncio"
"""A package that patches event loops. It refuses those of uvloop."""
_MAX_THREADS: Final = 32
"""How many calls of `asyncio.to_thread` run at a time. Abandoned calls do not count."""


class EventLoop(StrEnum):
    """An event loop, or how to choose it."""

    AUTO = "auto"
    """asyncio for workflows whose modules import `nest_asyncio`, otherwise uvloop."""
    ASYNCIO = "asyncio"
    UVLOOP = "uvloop"

    @property
    def factory(self) -> Callable[[], asyncio.AbstractEventLoop]:
        """What makes the loop. Ask after the modules of the workflows are imported."""
        if self is EventLoop.ASYNCIO or (self is EventLoop.AUTO and _PATCHES_LOOPS in sys.modules):
            return asyncio.SelectorEventLoop  # not the policy's: a module may have set that of uvloop
        import uvloop  # noqa: PLC0415 - short commands start faster without it

        return uvloop.new_event_loop


class Threads(DaemonExecutor):
    """The default threads of a loop. What they call may raise anything.

    In older releases of Python, awaiting a call that raises `StopIteration` never returns.
    """

    def __init__(self) -> None:
        super().__init__("asyncio", limit=_MAX_THREADS)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call a function in a thread."""
        return super().submit(_call, fn, *args, **kwargs)


def _call(fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    try:
        return fn(*args, **kwargs)
    except StopIteration as exc:
        raise RuntimeError("a function in a thread raised StopIteration") from exc
