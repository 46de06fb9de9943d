"""How long a client tries: deadlines, and the pauses between attempts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeAlias

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import pause_for
from llama_deploy.errors import LlamaDeployError
from llama_deploy.web.connection_settings import DEFAULT_TIMEOUT

Clock: TypeAlias = Callable[[], float]
"""Returns seconds that never decrease, as `time.monotonic` does."""

_GRACE: Final = 5.0
"""Seconds after the deadline in which a response that is on its way may arrive."""
_BACKOFF: Final = Backoff(first=0.1, longest=2.0)


class Deadline:
    """The moment when a client gives up, `seconds` from now; `math.inf` means never."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    def remaining(self) -> float:
        """Return the seconds left, 0 after the deadline."""
        return max(0.0, self._end - self._clock())


def pause_after(failures: int, error: LlamaDeployError) -> float:
    """Return the seconds to wait after `failures` failed requests in a row, the last one with `error`.

    0.1 s, doubled each time up to 2 s; more if the server asks for it with `retry_after`, up to a minute.
    """
    return pause_for(error, _BACKOFF.delay(failures))


def answer_timeout(deadline: Deadline, wait_seconds: float = 0.0) -> float:
    """Return the timeout of a request that the server may hold for `wait_seconds`."""
    return min(wait_seconds + DEFAULT_TIMEOUT, deadline.remaining() + _GRACE)
