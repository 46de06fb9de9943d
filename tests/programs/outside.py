"""What the programs call outside of themselves: models, searches, other systems.

A call returns at once. If `OUTSIDE` names a folder, each call is noted there, and a test can hold calls back.
"""

import asyncio
import os
import time
from pathlib import Path

_LOOK_EVERY_SECONDS = 0.05


async def call(name: str) -> None:
    """Call something outside; `name` is `program/what`."""
    _note("begin", name)
    while _is_held(name):  # noqa: ASYNC110 - the test is another process
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
    _note("end", name)


def call_in_thread(name: str) -> None:
    """The same for code that blocks its thread."""
    _note("begin", name)
    while _is_held(name):
        time.sleep(_LOOK_EVERY_SECONDS)
    _note("end", name)


def _note(word: str, name: str) -> None:
    if "OUTSIDE" in os.environ:
        program, _, what = name.partition("/")
        line = f"{word} {what} {os.getpid()}\n"
        # In one write, so that lines of several threads and processes do not mix.
        with (Path(os.environ["OUTSIDE"]) / f"{program}.calls").open("ab", buffering=0) as calls:
            calls.write(line.encode())


def _is_held(name: str) -> bool:
    return (
        "OUTSIDE" in os.environ and (Path(os.environ["OUTSIDE"]) / f"{name}.held".replace("/", "-")).exists()
    )
