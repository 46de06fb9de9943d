"""How busy the computer is, so that a test knows whether a time that it has measured says something."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

_SLEEP_SECONDS: Final = 0.01
_TURNS: Final = 5
"""How many processes do something one after the other in what is measured, at most."""
_OWN: Final = 2
"""How many processes that want to run, for each processor, may be those of the test."""
MAX_LATENESS: Final = 0.1
"""If a thread that only sleeps wakes up so late, the computer is busy with something else."""
_STAT: Final = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Beat:
    """When the thread woke up, how late, and how many processes wanted to run."""

    at: float
    late: float
    running: int


class Pulse:
    """A thread that does nothing but sleep, and notes how much later than asked it wakes up.

    It also notes how many processes want to run.

    Args:
        beats: What is known already.
    """

    def __init__(self, beats: Iterable[Beat] = ()) -> None:
        self._beats = list(beats)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def lateness(self, begin: float, end: float) -> float:
        """Return the longest delay within a time on the monotonic clock, in seconds."""
        return max((beat.late for beat in self._within(begin, end)), default=0.0)

    def slowness(self, begin: float, end: float) -> float:
        """Return how many times longer a computation took than without other work; at least 1."""
        running = [beat.running for beat in self._within(begin, end)]
        if not running:
            return 1.0
        return max(1.0, sum(running) / len(running) / (_OWN * (os.cpu_count() or 1)))

    def is_quiet(self, begin: float, end: float) -> bool:
        """Return whether the computer was busy with nothing else."""
        return self.lateness(begin, end) <= MAX_LATENESS and self.slowness(begin, end) == 1.0

    def idle_seconds(self, begin: float, end: float | None = None) -> float:
        """Return how long something would have taken on a computer without other work.

        Args:
            begin: When it began, on the monotonic clock.
            end: When it ended. None: now.
        """
        end = time.monotonic() if end is None else end
        return (end - begin - _TURNS * self.lateness(begin, end)) / self.slowness(begin, end)

    def _within(self, begin: float, end: float) -> list[Beat]:
        return [beat for beat in list(self._beats) if begin <= beat.at and beat.at - beat.late <= end]

    def _run(self) -> None:
        while not self._ended.is_set():
            asked = time.monotonic() + _SLEEP_SECONDS
            time.sleep(_SLEEP_SECONDS)
            now = time.monotonic()
            self._beats.append(Beat(now, now - asked, _running()))


def _running() -> int:
    """Return how many processes and threads run or want to, or 0 if the system does not tell."""
    try:
        lines = _STAT.read_bytes().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(b"procs_running ")), 0)


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    """How busy the computer is while a test runs."""
    with Pulse() as beating:
        yield beating
