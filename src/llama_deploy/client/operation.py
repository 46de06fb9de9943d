"""What a client does, without I/O: operations, and the time they may take.

An operation is a generator. It yields what it needs, a request to be answered or a pause to be made, and
is sent the `HttpAnswer` (None after a pause), or is thrown the error that the request met. What it returns
is its result. Two drivers, one for asyncio and one for threads, carry out the same operations.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import quote

import pydantic
from pydantic import TypeAdapter

from llama_deploy.backoff import Backoff
from llama_deploy.errors import InternalServerError, LlamaDeployError, OverloadedError, UnavailableError
from llama_deploy.web.http_connection import HttpAnswer, HttpRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

Clock: TypeAlias = Callable[[], float]
"""Tells seconds that never go back, as `time.monotonic` does."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A wish to go on after some seconds."""

    seconds: float


Operation: TypeAlias = Generator[HttpRequest | Pause, HttpAnswer | None, T]

_BACKOFF: Final = Backoff(first=0.1, longest=2.0)


class Deadline:
    """A moment until which to try, `seconds` from now; `math.inf` is never."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    def remaining(self) -> float:
        """Return the seconds left, 0 once it has passed."""
        return max(0.0, self._end - self._clock())


class Patience:
    """How long to pause after each failure in a row: 0.1 s, then the double of it, at most 2 s."""

    def __init__(self) -> None:
        self.failures = 0
        """How many there were."""

    def pause_after(self, error: LlamaDeployError) -> float:
        """Return the seconds to pause after `error`, which may ask for more by its `retry_after`."""
        self.failures += 1
        seconds = _BACKOFF.delay(self.failures)
        if isinstance(error, OverloadedError):
            return max(seconds, error.retry_after)
        return seconds


def exchange(request: HttpRequest) -> Operation[HttpAnswer]:
    """Have one request answered.

    Raises:
        LlamaDeployError: What the server answered.
        UnavailableError: It did not answer.
    """
    answer = yield request
    if answer is None:
        raise TypeError("the driver of an operation must send an answer to each request")
    return answer


def call(request: HttpRequest, returns: TypeAdapter[T]) -> Operation[T]:
    """Have one request answered and return what it was answered with.

    Raises:
        LlamaDeployError: What the server answered.
        InternalServerError: An answer that is not of the expected form.
        UnavailableError: No answer.
    """
    answer = yield from exchange(request)
    return parse(answer.value, returns, source=request.path)


def persist(build: Callable[[], HttpRequest], returns: TypeAdapter[T], deadline: Deadline) -> Operation[T]:
    """Like `call`, but try until the deadline while the server is not there or overloaded.

    Args:
        build: Makes the request for each try. The server must take a repetition for the same request.
        returns: The expected answer.
        deadline: When to give up with the last error.

    Raises:
        LlamaDeployError: As `call`.
    """
    patience = Patience()
    while True:
        request = build()
        try:
            return (yield from call(request, returns))
        except (UnavailableError, OverloadedError) as exc:
            left = deadline.remaining()
            if left <= 0:
                raise
            seconds = min(patience.pause_after(exc), left)
            logger.log(
                logging.WARNING if patience.failures == 1 else logging.DEBUG,
                "%s; trying again until it answers, %.0f s at most",
                exc,
                left,
                extra={"action": "retry"},
            )
            yield Pause(seconds)


def parse(value: Any, returns: TypeAdapter[T], *, source: str) -> T:
    """Return `value`, decoded JSON, as the expected type.

    Raises:
        InternalServerError: It is something else; `source` tells where it came from.
    """
    try:
        return returns.validate_python(value)
    except pydantic.ValidationError as exc:
        raise InternalServerError(
            f"{source} was answered with something else than expected; is it a server of this release? {exc}"
        ) from exc


def segment(text: str) -> str:
    """Return `text` as one segment of a URL's path."""
    return quote(text, safe="")
