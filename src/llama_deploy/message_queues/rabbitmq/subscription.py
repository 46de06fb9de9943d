"""Reading one queue of RabbitMQ: how many messages may come, and the deliveries that came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

from aio_pika.abc import AbstractIncomingMessage

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import retry
from llama_deploy.errors import LlamaDeployError
from llama_deploy.message_queues.base import Delivery, Subscription
from llama_deploy.message_queues.dead_letters import decode_message
from llama_deploy.message_queues.rabbitmq.channel import MAX_PREFETCH, ConsumerChannel
from llama_deploy.message_queues.rabbitmq.config import RabbitMQMessageQueueConfig
from llama_deploy.message_queues.rabbitmq.connection import RabbitMQConnection, translated
from llama_deploy.message_queues.rabbitmq.delivery import BrokerConsumer, Flight, RabbitMQDelivery
from llama_deploy.message_queues.rabbitmq.demand import Demand
from llama_deploy.message_queues.settlement import SettleAction
from llama_deploy.types import generate_id

_BACKOFF: Final = Backoff(first=0.05, longest=2.0)
_CLOSE_SECONDS: Final = 5.0
_GATHER_TURNS: Final = 3
"""Turns of the event loop without a further message after which those that were there at once are all in."""
_ACK_TIMEOUT_SHARE: Final = 0.9


class RabbitMQSubscription(Subscription):
    """Reads one queue over a channel of its own. One task talks to the broker; see `_balance`.

    The credit of the consumer and the messages in `_ready` are together never more than the demand: what
    `receive` asks for, or for a moment after it what it did not get.

    Args:
        connection: The connection.
        config: The settings.
        topic: The topic.
        queue_name: The queue of the topic's group.
        declare: Creates the queue if it does not exist.
    """

    def __init__(
        self,
        connection: RabbitMQConnection,
        config: RabbitMQMessageQueueConfig,
        *,
        topic: str,
        queue_name: str,
        declare: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(topic, visibility_timeout=config.visibility_timeout)
        self._connection = connection
        self._ack_timeout = config.ack_timeout * _ACK_TIMEOUT_SHARE
        self._queue_name = queue_name
        self._declare = declare
        self._channel: ConsumerChannel | None = None
        self._ready: deque[RabbitMQDelivery] = deque()
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._demand = Demand(self._changed.set)
        self._task = asyncio.create_task(self._run(), name=f"consume {queue_name}")

    @property
    def unsettled(self) -> int:
        """How many messages the broker has sent and does not know to be settled."""
        return len(self._channel.flights) if self._channel is not None else 0

    def settle(self, flight: Flight, action: SettleAction) -> None:
        """Note what to tell the broker."""
        delivery = flight.delivery
        if action is not SettleAction.ACK and delivery is not None and delivery in self._ready:
            self._ready.remove(delivery)
        if self._channel is not None:
            self._channel.settle(flight, action)

    async def _receive(self, max_messages: int) -> list[Delivery]:
        if not self._ready:
            await self._wait(max_messages)
        self._raise_failure()
        taken: list[Delivery] = []
        while self._ready and len(taken) < max_messages and not self.closed:
            delivery = self._ready.popleft()
            delivery.keep(self.visibility_timeout)
            taken.append(delivery)
        self._demand.keep(max_messages - len(taken))
        return taken

    async def _close(self) -> None:
        self._stopped.set()
        self._arrived.set()
        self._changed.set()
        done, _ = await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
        if not done:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._raise_failure()

    def _raise_failure(self) -> None:
        """Raise what has ended the task, if that was an error."""
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _wait(self, max_messages: int) -> None:
        """Wait until messages are ready, or the subscription is closed."""
        self._demand.ask(max_messages)
        try:
            while not (self._ready or self.closed or self._task.done()):
                self._arrived.clear()
                await self._arrived.wait()
            turns = 0
            while turns < _GATHER_TURNS and len(self._ready) < max_messages:
                before = len(self._ready)
                await asyncio.sleep(0)
                turns = turns + 1 if len(self._ready) == before else 0
        finally:
            self._demand.withdraw(max_messages)

    async def _run(self) -> None:
        """Talk to the broker until closed, over as many channels as it takes."""
        outage = self._connection.outage
        try:
            while not self.closed:
                self._changed.clear()
                with suppress(LlamaDeployError):  # raised only when it is closed
                    await retry(
                        self._balance,
                        backoff=_BACKOFF,
                        retry_on=lambda _: not self.closed,
                        outage=outage,
                        pause=self._pause,
                    )
                    await self._changed.wait()
            if self._channel is not None:
                self._channel.is_due = True
            with suppress(LlamaDeployError):
                await self._balance()
        finally:
            self._arrived.set()
            await self._drop_channel()
            self._demand.close()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    async def _balance(self) -> None:
        """Let in as much as there is room for, and send settlements as far as that allows."""
        try:
            with translated(self._connection.address):
                await self._balance_once()
        except LlamaDeployError:
            await self._drop_channel()
            raise

    async def _balance_once(self) -> None:
        if self._channel is not None and self._channel.is_lost:
            await self._drop_channel()
        asked = 0 if self.closed else self._demand.asked
        if self._channel is None:
            if not asked:
                return
            await self._declare()
            self._channel = await ConsumerChannel.open(await self._connection.connection(), self._changed.set)
        channel = self._channel
        if not channel.fits(self._room(), is_asked=bool(asked)):
            await channel.cancel_consumer()
        await channel.send_settlements(self._room())
        if channel.consumer is None and self._demand.asked and not self._ready and not self.closed:
            consumer = BrokerConsumer(f"llama_deploy {generate_id()}", min(self._demand.asked, MAX_PREFETCH))
            on_message = partial(self._on_message, channel, consumer)
            await channel.consume(self._queue_name, consumer, on_message)

    def _room(self) -> int:
        return (0 if self.closed else self._demand.total()) - len(self._ready)

    async def _drop_channel(self) -> None:
        """Forget the channel and what came over it."""
        channel, self._channel = self._channel, None
        if channel is None:
            return
        self._ready.clear()
        await channel.close(self._connection.address)

    async def _on_message(
        self, channel: ConsumerChannel, consumer: BrokerConsumer, incoming: AbstractIncomingMessage
    ) -> None:
        if channel is not self._channel or incoming.delivery_tag is None:
            return
        consumer.unsettled += 1
        until = asyncio.get_running_loop().time() + self._ack_timeout
        flight = Flight(incoming.delivery_tag, consumer, until)
        channel.flights[flight.tag] = flight
        message = decode_message(incoming.body, topic=self.topic)
        if message is None:
            self.settle(flight, SettleAction.REJECT)
            return
        earlier = incoming.headers.get("x-delivery-count", 0)
        attempt = 1 + (earlier if isinstance(earlier, int) else 0)
        delivery = RabbitMQDelivery(message, attempt=attempt, flight=flight, settle=self.settle)
        flight.delivery = delivery
        delivery.keep(self.visibility_timeout)
        self._ready.append(delivery)
        self._arrived.set()
