"""Reading one queue of RabbitMQ: how much may come, what came, and how it is settled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import count, takewhile
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.abc import AbstractChannel as DriverChannel

from llama_deploy.backoff import Backoff
from llama_deploy.errors import ClosedError, LlamaDeployError, MessageDecodeError
from llama_deploy.message_queues.base import Delivery, Subscription
from llama_deploy.message_queues.rabbitmq.config import RabbitMQMessageQueueConfig
from llama_deploy.message_queues.rabbitmq.connection import Link, translated
from llama_deploy.messages import QueueMessage

logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(first=0.05, longest=2.0)
_HOLD_SECONDS: Final = 0.05
"""How long an acknowledgement waits for room, and how long room waits for the next `receive`."""
_CLOSE_SECONDS: Final = 5.0
_MOST_PREFETCH: Final = 1000
_GATHER_TURNS: Final = 3
"""Turns of the event loop without a further message after which those that were there at once are all in."""
_OF_ACK_TIMEOUT: Final = 0.9


class _Settlement(StrEnum):
    """What the broker is to be told about a message."""

    ACK = "ack"
    """Forget it."""
    NACK = "nack"
    """Give it to the group again."""
    REJECT = "reject"
    """Put it aside as a dead letter."""


@dataclass(slots=True, eq=False)
class _Consumer:
    """A consumer at the broker, which sends messages while fewer than `prefetch` are unsettled."""

    tag: str
    prefetch: int
    unsettled: int = 0

    @property
    def credit(self) -> int:
        """How many messages it may send now."""
        return self.prefetch - self.unsettled


@dataclass(slots=True, eq=False)
class _Flight:
    """A message that the broker has sent and does not know to be settled."""

    tag: int
    """Its number on the channel; the numbers grow."""
    consumer: _Consumer
    until: float
    """When it must go back, by the loop's clock, lest the broker end the channel."""
    settlement: _Settlement | None = None
    """What the broker is to be told."""
    delivery: RabbitMQDelivery | None = None
    """None: the message cannot be understood."""


@dataclass(slots=True, eq=False)
class _Line:
    """A channel and what came over it. When it is lost, the broker gives that to the group again."""

    channel: AbstractChannel
    driver: DriverChannel
    consumer: _Consumer | None = None
    flights: dict[int, _Flight] = field(default_factory=dict)
    """By tag, in order."""
    is_lost: bool = False


class RabbitMQSubscription(Subscription):
    """Reads one queue over a channel of its own. One task speaks with the broker; see `_balance`.

    It always holds that the credit of the consumer and the messages that wait in `_ready` are together no
    more than the room of the caller: what `receive` asks for, or for a moment after it what it did not get.

    Args:
        link: The connection.
        config: The settings.
        queue_name: The queue of the topic's group.
        member: The name of this member, which the broker's tools show.
        declare: Creates the queue if it does not exist.
        on_close: Called when it is closed.
    """

    def __init__(
        self,
        link: Link,
        config: RabbitMQMessageQueueConfig,
        *,
        queue_name: str,
        member: str | None,
        declare: Callable[[], Awaitable[None]],
        on_close: Callable[[RabbitMQSubscription], None],
    ) -> None:
        self.visibility_timeout = config.visibility_timeout
        self._link = link
        self._ack_timeout = config.ack_timeout * _OF_ACK_TIMEOUT
        self._queue_name = queue_name
        self._tags = (f"{member or 'llama_deploy'} {number}" for number in count(1))
        self._declare = declare
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._line: _Line | None = None
        self._ready: deque[RabbitMQDelivery] = deque()
        self._asked = 0
        """How many messages the callers of `receive` wait for."""
        self._left = 0
        """How many the last of them did not get; it will ask for them at once, or does not want them."""
        self._is_due = False
        """Whether all settlements are to leave now."""
        self._forgetting: asyncio.TimerHandle | None = None
        self._hastening: asyncio.TimerHandle | None = None
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()
        self._closed = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"consume {queue_name}")

    async def receive(self, max_messages: int) -> list[Delivery]:
        """Wait until there is a message, then return it with the others that are there at once.

        Raises:
            ClosedError: The subscription is closed.
        """
        if not self._ready:
            await self._wait(max_messages)
        if self._closed.is_set():
            self._check_task()
            raise ClosedError(
                f"the subscription to {self._queue_name!r} is closed; subscribe again to read on"
            )
        taken: list[Delivery] = []
        while self._ready and len(taken) < max_messages:
            delivery = self._ready.popleft()
            delivery.keep(self.visibility_timeout)
            taken.append(delivery)
        self._keep_room(max_messages - len(taken))
        return taken

    async def close(self) -> None:
        """Stop reading. Unsettled deliveries come back to the group at once. Idempotent."""
        if not self._closed.is_set():
            self._closed.set()
            self._arrived.set()
            self._changed.set()
            self._on_close(self)
        done, _ = await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
        if not done:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._check_task()

    def settle(self, flight: _Flight, settlement: _Settlement) -> None:
        """Note what the broker is to be told; acknowledgements may wait for a moment."""
        flight.settlement = settlement
        if settlement is not _Settlement.ACK:
            self._is_due = True
            if flight.delivery is not None and flight.delivery in self._ready:
                self._ready.remove(flight.delivery)
        elif self._hastening is None:
            self._hastening = self._loop.call_later(_HOLD_SECONDS, self._hasten)
        self._changed.set()

    def _check_task(self) -> None:
        """Raise what has ended the task, if that was an error."""
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _wait(self, max_messages: int) -> None:
        """Wait until messages are ready, or the subscription is closed."""
        self._asked += max_messages
        self._changed.set()
        try:
            while not self._ready and not self._closed.is_set():
                self._arrived.clear()
                await self._arrived.wait()
            turns = 0
            while turns < _GATHER_TURNS and len(self._ready) < max_messages:
                before = len(self._ready)
                await asyncio.sleep(0)
                turns = turns + 1 if len(self._ready) == before else 0
        finally:
            self._asked -= max_messages
            self._keep_room(max_messages)

    def _keep_room(self, room: int) -> None:
        """Keep the room of a caller for a moment, in which it may call again."""
        self._left = room
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forgetting = self._loop.call_later(_HOLD_SECONDS, self._forget_room)
        self._changed.set()

    def _forget_room(self) -> None:
        self._left = 0
        self._changed.set()

    def _hasten(self) -> None:
        self._hastening = None
        self._is_due = True
        self._changed.set()

    async def _run(self) -> None:
        """Speak with the broker until closed, over as many channels as it takes."""
        failures = 0
        try:
            while not self._closed.is_set():
                self._changed.clear()
                try:
                    with translated(self._link.address):
                        await self._balance()
                except LlamaDeployError as exc:
                    self._link.note_loss(exc)
                    await self._let_go()
                    failures += 1
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._closed.wait(), _BACKOFF.delay(failures))
                else:
                    failures = 0
                    self._link.note_return()
                    await self._changed.wait()
            self._is_due = True
            with suppress(LlamaDeployError), translated(self._link.address):
                await self._balance()
        finally:
            self._closed.set()
            self._arrived.set()
            await self._let_go()
            for timer in (self._forgetting, self._hastening):
                if timer is not None:
                    timer.cancel()

    async def _balance(self) -> None:
        """Let in as much as there is room for, and send settlements as far as that allows."""
        if self._line is not None and self._line.is_lost:
            await self._let_go()
        if self._line is None:
            if not self._asked or self._closed.is_set():
                return
            self._line = await self._open()
        line = self._line
        if line.consumer is not None and not self._fits(line.consumer, line):
            # When the broker has answered, nothing of it is on its way any more.
            await line.driver.basic_cancel(line.consumer.tag)
            line.consumer = None
        await self._send(line)
        if line.consumer is None and self._asked and not self._ready and not self._closed.is_set():
            line.consumer = _Consumer(next(self._tags), min(self._asked, _MOST_PREFETCH))
            await self._consume(line, line.consumer)

    def _room(self) -> int:
        wanted = 0 if self._closed.is_set() else self._asked or self._left
        return wanted - len(self._ready)

    def _fits(self, consumer: _Consumer, line: _Line) -> bool:
        """Return whether a consumer has neither more credit than there is room, nor far too little."""
        room = self._room()
        flights = line.flights.values()
        settled = sum(1 for flight in flights if flight.settlement and flight.consumer is consumer)
        credit = consumer.credit + settled
        if not self._is_due:
            credit = max(min(credit, room), consumer.credit)
        return credit <= room and not (self._asked and credit * 2 < min(room, _MOST_PREFETCH))

    async def _open(self) -> _Line:
        await self._declare()
        connection = await self._link.connection()
        channel = await connection.channel(publisher_confirms=False)
        line = _Line(channel, await channel.get_underlay_channel())
        line.channel.close_callbacks.add(partial(self._on_lost, line))
        line.driver.on_consumer_cancel_callbacks.add(partial(self._on_lost, line))
        return line

    async def _consume(self, line: _Line, consumer: _Consumer) -> None:
        await line.channel.set_qos(prefetch_count=consumer.prefetch)
        queue = await line.channel.get_queue(self._queue_name, ensure=False)
        await queue.consume(partial(self._on_message, line, consumer), consumer_tag=consumer.tag)

    async def _send(self, line: _Line) -> None:
        """Send the settlements that may leave: all when they are due, else those that let nothing more in."""
        hold = line.consumer if not self._is_due else None
        allowed = self._room() - hold.credit if hold is not None else 0
        chosen: list[_Flight] = []
        for flight in line.flights.values():
            if flight.settlement is None:
                continue
            if flight.consumer is hold:
                if allowed <= 0:
                    continue
                allowed -= 1
            chosen.append(flight)
        self._is_due = False
        # One acknowledgement does for all before it.
        in_front = list(takewhile(_is_acked, line.flights.values()))
        together = [flight for flight, other in zip(chosen, in_front, strict=False) if flight is other]
        for flight in chosen:
            del line.flights[flight.tag]
            flight.consumer.unsettled -= 1
        if together:
            await line.driver.basic_ack(together[-1].tag, multiple=True, wait=False)
        for flight in chosen[len(together) :]:
            if flight.settlement is _Settlement.ACK:
                await line.driver.basic_ack(flight.tag, wait=False)
            else:
                requeue = flight.settlement is _Settlement.NACK
                await line.driver.basic_reject(flight.tag, requeue=requeue, wait=False)
        if self._hastening is not None and not any(flight.settlement for flight in line.flights.values()):
            self._hastening.cancel()
            self._hastening = None

    async def _let_go(self) -> None:
        """Forget the channel and what came over it."""
        line, self._line = self._line, None
        if line is None:
            return
        self._ready.clear()
        for flight in line.flights.values():
            if flight.delivery is not None:
                flight.delivery.forget()
        if not line.channel.is_closed:
            with suppress(LlamaDeployError), translated(self._link.address):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await line.channel.close()

    def _on_lost(self, line: _Line, *_: object) -> None:
        line.is_lost = True
        self._changed.set()

    async def _on_message(self, line: _Line, consumer: _Consumer, incoming: AbstractIncomingMessage) -> None:
        if line is not self._line or incoming.delivery_tag is None:
            return
        consumer.unsettled += 1
        until = self._loop.time() + self._ack_timeout
        flight = _Flight(incoming.delivery_tag, consumer, until)
        line.flights[flight.tag] = flight
        try:
            message = QueueMessage.decode(incoming.body)
        except MessageDecodeError as exc:
            logger.error(  # noqa: TRY400 - the error is in the message, not in the code that the traceback shows
                "a message of %s cannot be understood and becomes a dead letter: %s",
                self._queue_name,
                exc,
                extra={"action": "reject"},
            )
            self.settle(flight, _Settlement.REJECT)
            return
        earlier = incoming.headers.get("x-delivery-count", 0)
        attempt = 1 + (earlier if isinstance(earlier, int) else 0)
        flight.delivery = RabbitMQDelivery(self, flight, message, attempt=attempt)
        flight.delivery.keep(self.visibility_timeout)
        self._ready.append(flight.delivery)
        self._arrived.set()


def _is_acked(flight: _Flight) -> bool:
    return flight.settlement is _Settlement.ACK


class RabbitMQDelivery(Delivery):
    """A delivery of the queue over RabbitMQ.

    Args:
        subscription: It settles this.
        flight: What the subscription knows of it.
        message: The message.
        attempt: How often it was delivered.
    """

    def __init__(
        self, subscription: RabbitMQSubscription, flight: _Flight, message: QueueMessage, *, attempt: int
    ) -> None:
        self.message = message
        self.attempt = attempt
        self._subscription = subscription
        self._flight = flight
        self._is_settled = False
        self._timer: asyncio.TimerHandle | None = None

    async def ack(self) -> None:
        """The work is done; the message will not come back. Harmless when settled before."""
        if not self._is_settled:
            self._settle(_Settlement.ACK)

    async def nack(self, delay: float = 0.0) -> None:
        """The work failed; the message comes back, not before `delay` seconds unless this process ends."""
        if self._is_settled:
            return
        if delay > 0:
            self._is_settled = True
            self.keep(delay)
        else:
            self._settle(_Settlement.NACK)

    async def extend(self, seconds: float) -> None:
        """Keep the message `seconds` from now before it counts as unsettled, within `ack_timeout`."""
        if not self._is_settled:
            self.keep(seconds)

    def keep(self, seconds: float) -> None:
        """Give the message back after so many seconds, unless it is settled or kept again before."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        until = min(loop.time() + seconds, self._flight.until)
        self._timer = loop.call_at(until, self._settle, _Settlement.NACK)

    def forget(self) -> None:
        """Settle nothing any more: the broker has been told, or has taken the message back."""
        self._is_settled = True
        if self._timer is not None:
            self._timer.cancel()

    def _settle(self, settlement: _Settlement) -> None:
        self.forget()
        self._subscription.settle(self._flight, settlement)
