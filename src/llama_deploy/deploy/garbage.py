"""How often a process that serves looks for garbage in cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

YOUNG_OBJECTS: Final = 50_000
"""How many containers are made, and not deleted, before the young ones are examined.

With 64 tasks in flight the objects of the running tasks alone are more than 10,000, so that each examination
would look at what is still in use. The peak of memory over thousands of tasks is the same with both.
"""
_DEFAULTS: Final = frozenset({700, 2_000})
"""The first thresholds of Python's releases. Another one is the choice of the program, and stays."""


class _Servers:
    """The servers of this process; the last of them restores what the first has found."""

    def __init__(self) -> None:
        self.running = 0
        self.found: tuple[int, int, int] | None = None


_servers: Final = _Servers()


@contextmanager
def seldom_collecting() -> Iterator[None]:
    """Let Python examine its objects less often while a server runs, unless the program has chosen how often.

    A run of a workflow makes thousands of objects and keeps most of them until it ends, so that examining
    them after every 700 finds little: it took a seventh of the CPU time of a trivial task. Garbage in cycles
    stays a little longer, some MB of small objects.
    """
    if _servers.running == 0 and gc.get_threshold()[0] in _DEFAULTS:
        _servers.found = gc.get_threshold()
        gc.set_threshold(YOUNG_OBJECTS, *_servers.found[1:])
    _servers.running += 1
    try:
        yield
    finally:
        _servers.running -= 1
        if _servers.running == 0 and _servers.found is not None:
            gc.set_threshold(*_servers.found)
            _servers.found = None
