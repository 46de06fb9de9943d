"""A subscription over a queue that only knows consumers, as the queues do that were written for 0.6."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from llama_deploy.message_queues.base import Delivery, Subscription
from llama_deploy.types import generate_id

if TYPE_CHECKING:
    from llama_deploy.messages import QueueMessage

_VISIBILITY_SECONDS: Final = 30.0
_RESTART_SECONDS: Final = 1.0
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
        self._leave: Callable[[], Coroutine[Any, Any, object]] | None = None

    def begin(
        self,
        start_consuming: Callable[[], Coroutine[Any, Any, None]],
        *,
        leave: Callable[[], Coroutine[Any, Any, object]],
    ) -> None:
        """Run the loop of the queue.

        Args:
            start_consuming: What `register_consumer` has returned.
            leave: Deregisters this consumer.
        """
        self._leave = leave
        self._consuming = asyncio.create_task(self._consume(start_consuming), name=f"consume {self.topic}")

    async def _consume(self, start_consuming: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while not self.closed:
            await start_consuming()
            await asyncio.sleep(_RESTART_SECONDS)

    async def process_message(self, message: QueueMessage, **_: Any) -> None:
        """Hand a message to the reader, and return when it is settled."""
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
        arriving = asyncio.ensure_future(self._arrived.get())
        waiting: set[asyncio.Future[Any]] = {arriving}
        if self._consuming is not None:
            waiting.add(self._consuming)
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if arriving.done() and not arriving.cancelled():
                self._arrived.put_nowait(arriving.result())
            arriving.cancel()
            raise
        if not arriving.done():
            arriving.cancel()
            if self._consuming is not None and not self.closed:
                self._consuming.result()
            return []
        found: list[Delivery] = [arriving.result()]
        while len(found) < max_messages and not self._arrived.empty():
            found.append(self._arrived.get_nowait())
        return found

    async def _close(self) -> None:
        for delivery in self._held:
            delivery.is_settled = True
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
