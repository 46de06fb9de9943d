"""The way to a broker that may be away: calls that outlast an outage, which is told of once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

from llama_deploy.backoff import Backoff
from llama_deploy.errors import ConfigError, LlamaDeployError, UnavailableError
from llama_deploy.retrying import Outage, retry

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF: Final = Backoff(first=0.05, longest=1.0)
_REFUSED: Final = Backoff(first=0.1, longest=5.0)


class Refusals:
    """Calls that outlast a broker's refusal of what it has granted before.

    Passwords and permissions are set by people, who take a while to set them right on all sides.

    Args:
        broker: The broker, with its address and without credentials, for the log.
    """

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self._outage = Outage(on_start=self._log_refusal, on_end=self._log_access)

    async def outlast(
        self, call: Callable[[], Awaitable[T]], *, was_granted: Callable[[], bool] = lambda: True
    ) -> T:
        """Call again, with growing pauses, while the broker refuses credentials or a permission.

        Args:
            call: The call.
            was_granted: Asked at a refusal; where nothing was granted before, it is raised.

        Raises:
            LlamaDeployError: What `call` raises, but `ConfigError` only if nothing was granted before.
        """
        return await retry(
            call,
            backoff=_REFUSED,
            retry_on=lambda error: isinstance(error, ConfigError) and was_granted(),
            outage=self._outage,
        )

    def _log_refusal(self, error: LlamaDeployError) -> None:
        logger.warning(
            "%s denies access that it has granted before; retrying: %s",
            self._broker,
            error,
            extra={"action": "queue_refused"},
        )

    def _log_access(self) -> None:
        logger.info("%s grants access again", self._broker, extra={"action": "queue_back"})


class BrokerLink:
    """What the ways to all brokers have in common.

    Args:
        broker: The broker, with its address and without credentials, for the log.
        retry_seconds: How long a call that somebody waits for is tried again.
    """

    def __init__(self, broker: str, *, retry_seconds: float) -> None:
        self._broker = broker
        self._retry_seconds = retry_seconds
        self._is_lost = False
        self._refusals = Refusals(broker)

    def give_up_at(self) -> float:
        """Return until when, by the loop's clock, a call that begins now is to be tried."""
        return asyncio.get_running_loop().time() + self._retry_seconds

    async def persist(self, call: Callable[[], Awaitable[T]], *, give_up_at: float | None) -> T:
        """Call again, with growing pauses, while the broker does not answer.

        Args:
            call: The call.
            give_up_at: The time, by the loop's clock, after which the error is raised. None: never.

        Raises:
            LlamaDeployError: What `call` raises; `UnavailableError` only after `give_up_at`, unless it is not
                retriable.
        """
        failures = 0
        while True:
            try:
                result = await self._in_time(call, give_up_at)
            except UnavailableError as exc:
                if not exc.retriable:
                    raise
                self.note_loss(exc)
                failures += 1
                pause = _BACKOFF.delay(failures)
                if give_up_at is not None and asyncio.get_running_loop().time() + pause > give_up_at:
                    raise
                await asyncio.sleep(pause)
            else:
                self.note_return()
                return result

    async def outlast(
        self, call: Callable[[], Awaitable[T]], *, was_granted: Callable[[], bool] = lambda: True
    ) -> T:
        """Do as `persist` without end, and as `Refusals.outlast`."""
        again = partial(self.persist, call, give_up_at=None)
        return await self._refusals.outlast(again, was_granted=was_granted)

    async def _in_time(self, call: Callable[[], Awaitable[T]], give_up_at: float | None) -> T:
        try:
            async with asyncio.timeout_at(give_up_at):
                return await call()
        except TimeoutError as exc:
            raise UnavailableError(f"{self._broker} has not answered in time") from exc

    def note_loss(self, exc: BaseException) -> None:
        """Log that the broker is lost, once until it is back; errors of the links name it."""
        if not self._is_lost:
            self._is_lost = True
            logger.warning("the message queue is lost: %s", exc, extra={"action": "queue_lost"})

    def note_return(self) -> None:
        """Log that the broker is back, if it was lost."""
        if self._is_lost:
            self._is_lost = False
            logger.info("%s is back", self._broker, extra={"action": "queue_back"})
