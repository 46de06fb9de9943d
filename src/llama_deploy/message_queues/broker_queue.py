"""What the queues and the settings of all networked brokers share."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

from pydantic import Field, model_validator

from llama_deploy.concurrency.retrying import Outage
from llama_deploy.errors import UnavailableError
from llama_deploy.message_queues.base import (
    DEFAULT_GROUP,
    AbstractMessageQueue,
    MessageQueueConfig,
    PublishCallback,
    Subscription,
)
from llama_deploy.messages import QueueMessage

CHECK_SECONDS: Final = 2.5
"""How long a broker may take to answer `check`."""


class BrokerQueueConfig(MessageQueueConfig):
    """Settings of a queue over a broker on the network."""

    retry_seconds: float = Field(default=10.0, ge=0)
    """How long `publish` and `subscribe` retry while the broker does not answer, before they raise
    `UnavailableError`. 0: one try. Receiving retries forever."""
    visibility_timeout: float = Field(default=30.0, gt=0, le=3600)
    """Seconds after which a delivery that is neither settled nor extended comes back."""
    max_deliveries: int = Field(default=10, ge=1)
    """After this many deliveries without an ack, a message goes to `{topic}.dead_letters`."""

    @classmethod
    def fields_in(cls, url: str) -> dict[str, Any]:
        """Return the fields that a URL holds, with `url` as it is to be kept: without credentials.

        Raises:
            ValueError: The URL is not valid. The text shows nothing of it.
        """
        return {"url": url}

    @model_validator(mode="before")
    @classmethod
    def _split_url(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Move the fields out of the URL; those that are given take precedence."""
        url = values.get("url")
        if not isinstance(url, str):
            return values
        found = cls.fields_in(url)
        given = {name: value for name, value in values.items() if value is not None}
        return {**found, **given, "url": found.get("url")}


@dataclass(frozen=True, slots=True, eq=False)
class Publication:
    """A message that waits to be published together with others."""

    topic: str
    body: bytes
    give_up_at: float


class BrokerQueue(AbstractMessageQueue):
    """A queue that connects over the network: `await connect(config)` gives one that is ready.

    One that is created without `connect` connects when it is first used.
    """

    _is_open = False

    @classmethod
    async def connect(cls, config: Any) -> Self:
        """Return a live queue.

        Raises:
            UnavailableError: The broker did not answer for `retry_seconds`.
            ConfigError: It refuses the settings, such as the credentials.
        """
        queue = cls(config)
        try:
            await queue.open()
        except BaseException:
            await queue.cleanup()
            raise
        return queue

    @cached_property
    def _opening(self) -> asyncio.Lock:
        return asyncio.Lock()

    async def open(self) -> None:
        """Connect, unless that was done. See `connect`.

        Raises:
            ClosedError: The queue was closed.
        """
        async with self._opening:
            if not self._is_open:
                self._check_open()
                await self._connect()
                self._is_open = True

    async def publish(
        self, message: QueueMessage, topic: str, callback: PublishCallback | None = None, **kwargs: Any
    ) -> None:
        """See `AbstractMessageQueue.publish`."""
        if not self._is_open:
            await self.open()
        await super().publish(message, topic, callback, **kwargs)

    async def subscribe(
        self, topic: str, *, group: str = DEFAULT_GROUP, expires_after: float | None = None
    ) -> Subscription:
        """See `AbstractMessageQueue.subscribe`."""
        if not self._is_open:
            await self.open()
        return await super().subscribe(topic, group=group, expires_after=expires_after)

    @property
    def problem(self) -> str | None:
        """See `AbstractMessageQueue.problem`."""
        errors = [outage.error for outage in self._outages() if outage.error is not None]
        return f"the message queue does not answer: {errors[0]}" if errors else None

    async def check(self) -> None:
        """See `AbstractMessageQueue.check`."""
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await super().check()
        except TimeoutError as exc:
            raise UnavailableError(
                f"the message broker at {self.as_config().address} has not answered for {CHECK_SECONDS:g} s"
            ) from exc

    def _outages(self) -> Sequence[Outage]:
        """Return the outages of the connections to the broker."""
        return ()

    @abstractmethod
    async def _connect(self) -> None:
        """Open what is needed before the first use; `connect` lists the errors."""
