"""The one way in which the project retries: call again with backoff, and report an outage once.

Use `retry` for a call that may fail for a while. Share one `Outage` between all calls to one place, so that
its failure and its recovery are logged once, however many calls meet it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.cancellation import cancellations
from llama_deploy.errors import LlamaDeployError, OverloadedError, QueueFullError, UnavailableError

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ASKED_SECONDS: Final = 60.0
"""How long a pause is at most that the other side has asked for."""


class Outage:
    """Reports the start and the end of an outage, once each.

    Args:
        on_start: Called with the first error.
        on_end: Called when a call succeeds after that and no other call is failing.
    """

    def __init__(self, *, on_start: Callable[[LlamaDeployError], None], on_end: Callable[[], None]) -> None:
        self._on_start = on_start
        self._on_end = on_end
        self._failing = 0
        """Calls that have failed and are being retried."""
        self.error: LlamaDeployError | None = None
        """The first error of the outage that was reported and has not ended. None: there is none."""

    def began(self, error: LlamaDeployError) -> None:
        """A call has failed for the first time and will be retried."""
        self._failing += 1
        if self.error is None:
            self.error = error
            self._on_start(error)

    def ended(self) -> None:
        """A call that had failed is over."""
        self._failing -= 1

    def succeeded(self) -> None:
        """A call has succeeded, at its first try or later."""
        if self.error is not None and not self._failing:
            self.error = None
            self._on_end()


def is_retriable(error: LlamaDeployError) -> bool:
    """Whether the error itself says that another try may succeed."""
    return error.retriable


def is_transient(error: LlamaDeployError) -> bool:
    """Whether the other side does not respond, or refuses this caller for a while.

    A full topic is not transient: whoever publishes decides what to do.
    """
    return (
        isinstance(error, UnavailableError | OverloadedError)
        and error.retriable
        and not isinstance(error, QueueFullError)
    )


def pause_for(error: LlamaDeployError, seconds: float) -> float:
    """Return how long to wait before the next try.

    Args:
        error: Why the last one failed. Its `retry_after`, which may come from another machine, counts up to
            `MAX_ASKED_SECONDS`.
        seconds: The shortest pause.
    """
    asked = getattr(error, "retry_after", None)
    if not isinstance(asked, int | float) or not math.isfinite(asked):
        return seconds
    return max(seconds, min(asked, MAX_ASKED_SECONDS))


async def retry(
    call: Callable[[], Awaitable[T]],
    *,
    backoff: Backoff,
    retry_on: Callable[[LlamaDeployError], bool] = is_retriable,
    give_up_at: float | None = None,
    outage: Outage | None = None,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Return the result of `call`, which is made again while it fails with an error to retry.

    A cancellation that `call` catches, or turns into another error, is raised nevertheless. Drivers do that
    when they clean up, and this loop would never end.

    Args:
        call: The call. It may run more than once.
        backoff: The pauses between the calls; longer ones if an error asks for it, see `pause_for`.
        retry_on: Whether an error is retried. Every other error is raised.
        give_up_at: Time of the loop's clock. An error is raised if its pause would end later. None: never.
        outage: Told when this call begins to fail, when it is over and when it succeeds.
        pause: Waits for the given seconds. Replace it to be woken early.

    Raises:
        LlamaDeployError: The error of `call` that is not retried, or the last one before `give_up_at`.
    """
    failures, cancelled = 0, cancellations()
    try:
        while True:
            try:
                try:
                    result = await call()
                finally:
                    if cancellations() > cancelled:
                        raise asyncio.CancelledError
            except LlamaDeployError as exc:
                if not retry_on(exc):
                    raise
                seconds = pause_for(exc, backoff.delay(failures + 1))
                if give_up_at is not None and asyncio.get_running_loop().time() + seconds > give_up_at:
                    raise
                failures += 1
                if failures == 1 and outage is not None:
                    outage.began(exc)
                logger.debug(
                    "failure %d, next try in %g s: %s", failures, seconds, exc, extra={"action": "retry"}
                )
                await pause(seconds)
            else:
                break
    finally:
        if failures and outage is not None:
            outage.ended()
    if outage is not None:
        outage.succeeded()
    return result
