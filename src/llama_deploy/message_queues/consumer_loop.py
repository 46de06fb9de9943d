"""Runs a consumer over a subscription: concurrency, settling, and keeping slow work from other members."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from llama_deploy.concurrency.backoff import Backoff

if TYPE_CHECKING:
    from llama_deploy.message_queues.base import Consumer, Delivery, Subscription

logger = logging.getLogger(__name__)

_NACK_BACKOFF: Final = Backoff(first=0.1, longest=30.0)


def nack_delay(attempt: int) -> float:
    """Return the seconds until a failed message is delivered again: 0.1, doubled per delivery, at most 30."""
    return _NACK_BACKOFF.delay(attempt)


class ConsumerLoop:
    """Feeds one consumer from one subscription."""

    def __init__(
        self, subscription: Subscription, consumer: Consumer, *, concurrency: int, raise_exceptions: bool
    ) -> None:
        self._subscription = subscription
        self._consumer = consumer
        self._concurrency = concurrency
        self._raise_exceptions = raise_exceptions
        self._running: set[asyncio.Task[None]] = set()

    async def run_until(self, stop: asyncio.Event) -> None:
        """Feed the consumer until `stop` is set, then wait for the messages in progress.

        Cancelling cancels them instead; they go back to the group.
        """
        stopping = asyncio.create_task(stop.wait())
        receiving: asyncio.Task[list[Delivery]] | None = None
        try:
            while not stop.is_set():
                room = self._concurrency - len(self._running)
                if receiving is None and room > 0:
                    receiving = asyncio.create_task(self._subscription.receive(room))
                waiting = [task for task in (stopping, receiving, *self._running) if task is not None]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                self._reap()
                if receiving is not None and receiving.done():
                    deliveries, receiving = receiving.result(), None
                    self._running |= {asyncio.create_task(self.process(each)) for each in deliveries}
            if self._running:
                await asyncio.wait(self._running)
                self._reap()
        finally:
            tasks = [task for task in (stopping, receiving, *self._running) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _reap(self) -> None:
        """Forget the tasks that have ended; raise what one of them raised."""
        ended = {task for task in self._running if task.done()}
        self._running -= ended
        for task in ended:
            task.result()

    async def process(self, delivery: Delivery) -> None:
        """Process one delivery and settle it."""
        try:
            async with self._kept(delivery):
                await self._consumer.process_message(delivery.message)
        except Exception:
            logger.warning(
                "consumer %s failed on message %s (delivery %d); it goes back to the queue",
                self._consumer.id_,
                delivery.message.id_,
                delivery.attempt,
                exc_info=True,
                extra={"action": "nack", "message_id": delivery.message.id_},
            )
            await delivery.nack(delay=nack_delay(delivery.attempt))
            if self._raise_exceptions:
                raise
        else:
            await delivery.ack()

    @asynccontextmanager
    async def _kept(self, delivery: Delivery) -> AsyncIterator[None]:
        """Extend a delivery while its processing lasts, so that slow work is not given to another member."""
        keeping = asyncio.create_task(self._keep(delivery))
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self, delivery: Delivery) -> None:
        seconds = self._subscription.visibility_timeout
        while True:
            await asyncio.sleep(seconds / 3)
            try:
                await delivery.extend(seconds)
            except Exception as exc:  # noqa: BLE001 - the next attempt may reach the broker in time
                logger.warning(
                    "message %s could not be kept, another consumer may get it too: %r",
                    delivery.message.id_,
                    exc,
                    extra={"action": "extend_failed", "message_id": delivery.message.id_},
                )
