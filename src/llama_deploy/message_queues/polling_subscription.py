"""A subscription that asks its broker for messages, one request at a time."""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from llama_deploy.message_queues.base import Delivery, Subscription


class PollingSubscription(Subscription):
    """Leaves the request of a cancelled `receive` to the next one.

    Cancelling the request itself could lose an answer that is on its way, until its visibility timeout.
    """

    def __init__(self, topic: str, *, visibility_timeout: float) -> None:
        super().__init__(topic, visibility_timeout=visibility_timeout)
        self._poll: asyncio.Task[list[Delivery]] | None = None
        self._received: list[Delivery] = []
        """Deliveries that no caller of `receive` has taken yet."""

    @abstractmethod
    async def _fetch(self, max_messages: int) -> list[Delivery]:
        """Wait for messages at the broker; an empty list lets `receive` ask again."""

    async def _receive(self, max_messages: int) -> list[Delivery]:
        if not self._received:
            if self._poll is None:
                self._poll = asyncio.create_task(self._fetch(max_messages), name=f"receive {self.topic}")
            poll = self._poll
            await asyncio.wait([poll])
            if self._poll is poll and not poll.cancelled():
                self._poll = None
                self._received = poll.result()
        taken, self._received = self._received[:max_messages], self._received[max_messages:]
        return taken

    async def _end_poll(self) -> None:
        """Cancel the request; what it has brought is not handed out any more."""
        poll, self._poll = self._poll, None
        self._received = []
        if poll is not None:
            poll.cancel()
            await asyncio.gather(poll, return_exceptions=True)
