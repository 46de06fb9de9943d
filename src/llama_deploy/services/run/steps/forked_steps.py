"""Ends the child of a process that a step has forked, before it becomes a second server.

A forked child continues in the middle of the step. When the step ends or awaits, the child would go on with
the event loop of its parent, on the same sockets. It ends instead, as a program does that has come to its
end, but without the parent's exit handlers: those belong to the parent.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Awaitable, Generator
from contextlib import suppress
from types import coroutine
from typing import Any, NoReturn

from llama_deploy.supervisor.step_trail import LoopMark

_forks = 0
"""How many times this process, or one that it descends from, was forked."""


def _count() -> None:
    global _forks  # noqa: PLW0603 - a process has one such number
    _forks += 1


os.register_at_fork(after_in_child=_count)


def generation() -> int:
    """Return a number that differs between a process and its forked children."""
    return _forks


def leave(step_name: str, raised: BaseException | None = None, *, awaits: bool = False) -> NoReturn:
    """End this process, a forked child.

    The exit code is that of `raised` if it is a `SystemExit`, 1 after another exception or if the child
    awaits, and 0 otherwise.
    """
    code, text = 0, ""
    if awaits:
        code = 1
        text = (
            f"the step {step_name!r} awaits in a forked process, which cannot continue without its parent;"
            " end the child with `os._exit`, or start it with `subprocess` or `multiprocessing`\n"
        )
    elif isinstance(raised, SystemExit):
        if isinstance(raised.code, int):
            code = raised.code & 0xFF
        elif raised.code is not None:
            code, text = 1, f"{raised.code}\n"
    elif raised is not None:
        code = 1
        with suppress(Exception):
            text = "".join(traceback.format_exception(raised))
    with suppress(Exception):
        sys.stderr.write(text)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


@coroutine
def only_in(
    forks: int, step_name: str, work: Awaitable[Any], mark: LoopMark | None
) -> Generator[Any, Any, Any]:
    """Await `work`, but end this process where it awaits in a child that was forked since `forks`.

    Args:
        forks: The generation in which the step has begun.
        step_name: The step.
        work: What the step does.
        mark: Notes when the step executes. None: nobody reads it.
    """
    steps = work.__await__()
    resume, value = steps.send, None
    while True:
        if mark is not None:
            mark.enter()
        try:
            awaited = resume(value)
        except StopIteration as end:
            return end.value
        finally:
            if mark is not None:
                mark.leave()
        if _forks != forks:
            leave(step_name, awaits=True)
        try:
            value = yield awaited
            resume = steps.send
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as exc:  # noqa: BLE001 - handed on to the step
            resume, value = steps.throw, exc
