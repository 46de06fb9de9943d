"""A connection to a broker that may be away: calls are retried, and each outage is logged once."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import Outage, is_transient, retry
from llama_deploy.errors import ConfigError, UnavailableError

logger = logging.getLogger(__name__)

T = TypeVar("T")

NEVER: Final = math.inf
_BACKOFF: Final = Backoff(first=0.05, longest=1.0)
_ONE_TRY_SECONDS: Final = 10.0
"""How long a call may take that is not retried."""
_DENIED_BACKOFF: Final = Backoff(first=0.1, longest=5.0)
"""People take a while to correct passwords and permissions on all sides."""


class BrokerConnection:
    """What the connections to all brokers have in common.

    Args:
        broker: The broker, with its address and without credentials, for logs and errors.
        retry_seconds: How long a call that somebody waits for is retried. 0: it is tried once.
    """

    def __init__(self, broker: str, *, retry_seconds: float) -> None:
        self.broker = broker
        self._retries = retry_seconds > 0
        self._call_seconds = retry_seconds or _ONE_TRY_SECONDS
        self.outage = self._outage("queue_lost", "the message queue is lost", "is back")
        """While the broker does not answer."""
        denied = f"{broker} denies access that it has granted before; retrying"
        self._denial = self._outage("queue_denied", denied, "grants access again")

    def give_up_at(self) -> float:
        """Return until when, by the loop's clock, a call that begins now may take with all its retries."""
        return asyncio.get_running_loop().time() + self._call_seconds

    async def retry(self, call: Callable[[], Awaitable[T]], *, give_up_at: float | None = None) -> T:
        """Retry a call, with growing pauses, while the broker does not answer or refuses all calls.

        Args:
            call: The call. It may run more than once.
            give_up_at: Time of the loop's clock after which the error is raised. `NEVER`: it is not raised.
                None: after `retry_seconds`.

        Raises:
            LlamaDeployError: What `call` raises; what is transient only after `give_up_at`.
        """
        give_up_at = self.give_up_at() if give_up_at is None else give_up_at
        retries = self._retries or give_up_at == NEVER
        return await retry(
            partial(self._attempt, call, give_up_at),
            backoff=_BACKOFF,
            retry_on=lambda error: retries and is_transient(error),
            give_up_at=give_up_at,
            outage=self.outage,
        )

    async def retry_forever(
        self, call: Callable[[], Awaitable[T]], *, was_granted: Callable[[], bool] = lambda: True
    ) -> T:
        """Retry a call while the broker does not answer, or denies access that it has granted before.

        Args:
            call: The call. It may run more than once.
            was_granted: Asked when access is denied. If it was never granted, the error is raised.

        Raises:
            LlamaDeployError: What `call` raises, but `ConfigError` only if access was never granted.
        """
        return await retry(
            partial(self.retry, call, give_up_at=NEVER),
            backoff=_DENIED_BACKOFF,
            retry_on=lambda error: isinstance(error, ConfigError) and was_granted(),
            outage=self._denial,
        )

    async def _attempt(self, call: Callable[[], Awaitable[T]], give_up_at: float) -> T:
        """Make a call once, until `give_up_at`."""
        try:
            async with asyncio.timeout_at(None if give_up_at == NEVER else give_up_at):
                return await call()
        except TimeoutError as exc:
            raise UnavailableError(f"{self.broker} has not answered in time") from exc

    def _outage(self, action: str, begun: str, ended: str) -> Outage:
        """Return an outage that is logged when it begins and when it ends."""
        return Outage(
            on_start=lambda error: logger.warning("%s: %s", begun, error, extra={"action": action}),
            on_end=lambda: logger.info("%s %s", self.broker, ended, extra={"action": "queue_back"}),
        )
