"""A subscription over a queue that only knows consumers, as the queues do that were written for 0.6."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from llama_deploy.message_queues.base import Delivery, Subscription
from llama_deploy.messages import QueueMessage
from llama_deploy.types import generate_id

logger = logging.getLogger(__name__)

Consuming: TypeAlias = Callable[[], Awaitable[object]]
"""Consumes until it is cancelled or its consumer is deregistered."""
Join: TypeAlias = Callable[[], Awaitable[Consuming]]
"""Registers a consumer."""
Leave: TypeAlias = Callable[[], Awaitable[object]]
"""Deregisters a consumer."""

_VISIBILITY_SECONDS: Final = 30.0
RESTART_SECONDS: Final = 1.0
"""How long a loop of the queue that has ended with an error rests."""


class ConsumerSubscription(Subscription):
    """Reads one topic as a consumer of the queue.

    `process_message` returns when the message is settled, so the queue holds back what the reader has no
    room for. A returned message stays here, and comes again from here. What is unsettled when this closes is
    lost, unless the queue brings again what its consumers did not finish; the control plane repairs that.

    Args:
        topic: The topic.
    """

    def __init__(self, topic: str) -> None:
        super().__init__(topic, visibility_timeout=_VISIBILITY_SECONDS)
        self.id_ = generate_id()
        """As a consumer."""
        self.message_type = topic
        self.channel = None
        self._arrived: asyncio.Queue[_HeldDelivery] = asyncio.Queue()
        self._held: set[_HeldDelivery] = set()
        self._consuming: asyncio.Task[None] | None = None
        self._leave: Leave | None = None
        self._is_failing = False
        """Whether the loop has failed since the last message."""

    def begin(self, start_consuming: Consuming, *, join: Join, leave: Leave) -> None:
        """Run the loop of the queue.

        Args:
            start_consuming: What `register_consumer` has returned.
            join: Registers this consumer again, after its loop has ended with an error.
            leave: Deregisters this consumer.
        """
        self._leave = leave
        consuming = self._consume(start_consuming, join=join, leave=leave)
        self._consuming = asyncio.create_task(consuming, name=f"consume {self.topic}")

    async def _consume(self, start_consuming: Consuming, *, join: Join, leave: Leave) -> None:
        while not self.closed:
            try:
                await start_consuming()
            except Exception as exc:  # noqa: BLE001 - the queue is code of the user
                logger.log(
                    logging.DEBUG if self._is_failing else logging.WARNING,
                    "the consumer of topic %s has failed and begins again, until it succeeds: %r",
                    self.topic,
                    exc,
                    extra={"action": "consume_again"},
                )
                self._is_failing = True
            await asyncio.sleep(RESTART_SECONDS)
            try:
                await leave()
                start_consuming = await join()
            except Exception as exc:  # noqa: BLE001 - as above
                logger.debug("topic %s: %r", self.topic, exc, extra={"action": "consume_again"})

    async def process_message(self, message: QueueMessage, **_: Any) -> None:
        """Hand a message to the reader, and return when it is settled."""
        self._is_failing = False
        delivery = _HeldDelivery(message, attempt=1, subscription=self)
        self._held.add(delivery)
        self._arrived.put_nowait(delivery)
        await delivery.done.wait()

    def forget(self, delivery: _HeldDelivery) -> None:
        """A delivery is settled for good."""
        self._held.discard(delivery)
        delivery.done.set()

    def return_later(self, delivery: _HeldDelivery, delay: float) -> None:
        """Hand a delivery out again."""
        again = _HeldDelivery(delivery.message, attempt=delivery.attempt + 1, subscription=self)
        again.done = delivery.done
        self._held.discard(delivery)
        self._held.add(again)
        asyncio.get_running_loop().call_later(delay, self._arrived.put_nowait, again)

    async def _receive(self, max_messages: int) -> list[Delivery]:
        found: list[Delivery] = [await self._arrived.get()]
        while len(found) < max_messages and not self._arrived.empty():
            found.append(self._arrived.get_nowait())
        return [delivery for delivery in found if not delivery.is_settled]

    async def _close(self) -> None:
        for delivery in self._held:
            delivery.is_settled = True
        # Wakes the reader.
        self._arrived.put_nowait(_HeldDelivery(QueueMessage(), attempt=1, subscription=self))
        if self._leave is not None:
            await self._leave()
        if self._consuming is not None:
            self._consuming.cancel()
            await asyncio.gather(self._consuming, return_exceptions=True)


class _HeldDelivery(Delivery):
    """A message that the queue has handed to its consumer."""

    def __init__(self, message: QueueMessage, *, attempt: int, subscription: ConsumerSubscription) -> None:
        super().__init__(message, attempt=attempt)
        self.done = asyncio.Event()
        """Set when the queue may go on."""
        self._subscription = subscription

    async def _ack(self) -> None:
        self._subscription.forget(self)

    async def _nack(self, delay: float) -> None:
        self._subscription.return_later(self, delay)

    async def _extend(self, seconds: float) -> None:
        """Do nothing: the message stays until it is settled."""
