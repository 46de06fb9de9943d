"""A channel that consumes one queue of RabbitMQ: what came over it, and which settlements leave when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import takewhile
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aiormq.abc import AbstractChannel as DriverChannel

from llama_deploy.message_queues.rabbitmq.connection import close_quietly
from llama_deploy.message_queues.rabbitmq.delivery import BrokerConsumer, Flight
from llama_deploy.message_queues.rabbitmq.demand import HOLD_SECONDS
from llama_deploy.message_queues.settlement import SettleAction

_CLOSE_SECONDS: Final = 5.0
MAX_PREFETCH: Final = 1000


class ConsumerChannel:
    """A channel and what came over it. When it is lost, the broker gives that to the group again.

    Args:
        channel: An open channel.
        driver: The same channel, as the driver beneath sees it.
        on_change: Called when settlements are to be sent, and when the channel or its consumer ends.
    """

    def __init__(
        self, channel: AbstractChannel, driver: DriverChannel, on_change: Callable[[], None]
    ) -> None:
        self.consumer: BrokerConsumer | None = None
        self.flights: dict[int, Flight] = {}
        """By tag, in order."""
        self.is_lost = False
        self.is_due = False
        """Whether all settlements are sent next, not only those for which there is room."""
        self._timer: asyncio.TimerHandle | None = None
        self._channel = channel
        self._driver = driver
        self._on_change = on_change
        channel.close_callbacks.add(self._lose)
        driver.on_consumer_cancel_callbacks.add(self._lose)

    @classmethod
    async def open(cls, connection: AbstractConnection, on_change: Callable[[], None]) -> ConsumerChannel:
        """Open a channel."""
        channel = await connection.channel(publisher_confirms=False)
        return cls(channel, await channel.get_underlay_channel(), on_change)

    async def consume(
        self,
        queue_name: str,
        consumer: BrokerConsumer,
        on_message: Callable[[AbstractIncomingMessage], Awaitable[None]],
    ) -> None:
        """Let a consumer send the messages of a queue."""
        self.consumer = consumer
        await self._channel.set_qos(prefetch_count=consumer.prefetch)
        queue = await self._channel.get_queue(queue_name, ensure=False)
        await queue.consume(on_message, consumer_tag=consumer.tag)

    async def cancel_consumer(self) -> None:
        """End the consumer. When the broker has answered, none of its messages is on the way any more."""
        if self.consumer is not None:
            await self._driver.basic_cancel(self.consumer.tag)
            self.consumer = None

    def settle(self, flight: Flight, action: SettleAction) -> None:
        """Note what to tell the broker; acknowledgements may wait for a moment."""
        flight.verdict = action
        if action is not SettleAction.ACK:
            self.is_due = True
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._end_hold)
        self._on_change()

    def fits(self, room: int, *, is_asked: bool) -> bool:
        """Return whether the consumer has neither more credit than there is room, nor far too little.

        Args:
            room: How many messages may come.
            is_asked: Whether a caller waits for them.
        """
        consumer = self.consumer
        if consumer is None:
            return True
        flights = self.flights.values()
        settled = sum(1 for flight in flights if flight.verdict and flight.consumer is consumer)
        credit = consumer.credit + settled
        if not self.is_due:
            credit = max(min(credit, room), consumer.credit)
        return credit <= room and not (is_asked and credit * 2 < min(room, MAX_PREFETCH))

    async def send_settlements(self, room: int) -> None:
        """Send all settlements when they are due, else those that let in no more than there is room for."""
        hold = None if self.is_due else self.consumer
        self.is_due = False
        allowed = room - hold.credit if hold is not None else 0
        chosen: list[Flight] = []
        for flight in self.flights.values():
            if flight.verdict is None:
                continue
            if flight.consumer is hold:
                if allowed <= 0:
                    continue
                allowed -= 1
            chosen.append(flight)
        # One acknowledgement covers all before it.
        in_front = takewhile(lambda flight: flight.verdict is SettleAction.ACK, list(self.flights.values()))
        together = [flight for flight, other in zip(chosen, in_front, strict=False) if flight is other]
        for flight in chosen:
            del self.flights[flight.tag]
            flight.consumer.unsettled -= 1
        if together:
            await self._driver.basic_ack(together[-1].tag, multiple=True, wait=False)
        for flight in chosen[len(together) :]:
            if flight.verdict is SettleAction.ACK:
                await self._driver.basic_ack(flight.tag, wait=False)
            else:
                requeue = flight.verdict is SettleAction.NACK
                await self._driver.basic_reject(flight.tag, requeue=requeue, wait=False)

        if not any(flight.verdict for flight in self.flights.values()):
            self._stop_timer()

    async def close(self, address: str) -> None:
        """Forget what came, and close the channel if the broker at `address` answers."""
        self._stop_timer()
        for flight in self.flights.values():
            if flight.delivery is not None:
                flight.delivery.forget()
        if not self._channel.is_closed:
            await close_quietly(self._channel, address, seconds=_CLOSE_SECONDS)

    def _end_hold(self) -> None:
        self._timer = None
        self.is_due = True
        self._on_change()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lose(self, *_: object) -> None:
        self.is_lost = True
        self._on_change()
