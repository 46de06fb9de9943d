"""A message that RabbitMQ has sent, from its arrival to its settlement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from llama_deploy.message_queues.base import Delivery
from llama_deploy.message_queues.settlement import SettleAction
from llama_deploy.messages import QueueMessage


@dataclass(slots=True, eq=False)
class BrokerConsumer:
    """A consumer at the broker, which sends messages while fewer than `prefetch` are unsettled."""

    tag: str
    prefetch: int
    unsettled: int = 0

    @property
    def credit(self) -> int:
        """How many messages it may send now."""
        return self.prefetch - self.unsettled


@dataclass(slots=True, eq=False)
class Flight:
    """A message that the broker has sent and does not know to be settled."""

    tag: int
    """Its number on the channel; the numbers grow."""
    consumer: BrokerConsumer
    until: float
    """When it must go back, by the loop's clock, before the broker ends the channel."""
    verdict: SettleAction | None = None
    """What to tell the broker."""
    delivery: RabbitMQDelivery | None = None
    """None: the message cannot be decoded."""


class RabbitMQDelivery(Delivery):
    """A delivery of the queue over RabbitMQ.

    Args:
        message: The message.
        attempt: How often it was delivered.
        flight: The message on its channel.
        settle: Notes what to tell the broker.
    """

    def __init__(
        self,
        message: QueueMessage,
        *,
        attempt: int,
        flight: Flight,
        settle: Callable[[Flight, SettleAction], None],
    ) -> None:
        super().__init__(message, attempt=attempt)
        self._tell = settle
        self._flight = flight
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, seconds: float) -> None:
        """Return the message after so many seconds, unless it is settled or kept again before."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(
            min(loop.time() + seconds, self._flight.until), self._settle, SettleAction.NACK
        )

    def forget(self) -> None:
        """Mark it as settled: the broker has been told, or has taken the message back."""
        self.is_settled = True
        if self._timer is not None:
            self._timer.cancel()

    async def _ack(self) -> None:
        self._settle(SettleAction.ACK)

    async def _nack(self, delay: float) -> None:
        """The message comes back after the delay, or when this process ends."""
        if delay > 0:
            self.keep(delay)
        else:
            self._settle(SettleAction.NACK)

    async def _extend(self, seconds: float) -> None:
        """Extend within `ack_timeout`."""
        self.keep(seconds)

    def _settle(self, verdict: SettleAction) -> None:
        self.forget()
        self._tell(self._flight, verdict)
