"""Reading a topic of the queue on Amazon SQS: subscriptions and deliveries."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from llama_deploy.errors import UnavailableError
from llama_deploy.message_queues.aws.connection import MAX_ENTRIES, SqsConnection
from llama_deploy.message_queues.aws.reader import SqsReader
from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX, Delivery
from llama_deploy.message_queues.holding_subscription import (
    HeldSettlement,
    HoldingSubscription,
    ReceivedMessage,
    still_due,
)
from llama_deploy.message_queues.settlement import SettleAction

logger = logging.getLogger(__name__)

_GATHER_SECONDS: Final = 0.01
"""How long settlements gather: no caller waits for them, and each request costs money."""
_MAX_HELD_SECONDS: Final = 43_200
"""How long a message can be kept from others after it was received ("Visibility timeout")."""

_DONE: Final = (SettleAction.ACK, SettleAction.REJECT)


class Spawn(Protocol):
    """Starts a background task that ends by itself; or, if it is endless, when the queue is closed."""

    def __call__(self, work: Any, *, name: str, endless: bool = False) -> asyncio.Task[Any]:
        """Start the task."""
        ...


class SqsSubscription(HoldingSubscription):
    """Reads one queue. A `receive` that is cancelled leaves its request to the next one.

    Cancelling the request itself could lose what is on its way, until its visibility timeout. What a request
    brings when no caller waits for it any more goes back at once.

    Args:
        connection: The connections to the service.
        reader: Reads the queue.
        topic: The topic.
        put: Publishes a body to a topic.
        spawn: Starts background tasks.
    """

    def __init__(
        self,
        connection: SqsConnection,
        reader: SqsReader,
        *,
        topic: str,
        put: Callable[[str, bytes], Awaitable[None]],
        spawn: Spawn,
    ) -> None:
        super().__init__(topic, connection.config, gather_seconds=_GATHER_SECONDS, max_batch=10 * MAX_ENTRIES)
        self._connection = connection
        self._reader = reader
        self._put = put
        self._spawn = spawn
        self._poll: asyncio.Task[list[ReceivedMessage]] | None = None
        self._waiting = 0
        """How many callers wait for the request."""
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def _store_dead_letter(self, received: ReceivedMessage) -> None:
        await self._put(self.topic + DEAD_LETTERS_SUFFIX, received.body)

    def _possible(self, received: ReceivedMessage, seconds: float) -> float:
        """A message cannot be kept for more than 12 hours after it was received."""
        left = received.since + _MAX_HELD_SECONDS - asyncio.get_running_loop().time()
        return max(0.0, min(seconds, left - 1))

    async def _receive(self, max_messages: int) -> list[Delivery]:
        if self._poll is None:
            work = self._reader.fetch(max_messages)
            self._poll = self._spawn(work, name=f"receive {self.topic}", endless=True)
            self._poll.add_done_callback(self._reclaim)
        poll = self._poll
        await self._wait_for(poll)
        if self._poll is not poll or not poll.done() or self.closed:
            return []
        self._poll = None
        received = poll.result()
        self._give_back(received[max_messages:])
        for each in received[:max_messages]:
            self._held.add(each, self._held_until(each))
        return self._open(received[:max_messages])

    async def _close(self) -> None:
        self._ended.set_result(None)
        self._reclaim()
        await self._end_settling()

    async def _wait_for(self, poll: asyncio.Task[list[ReceivedMessage]]) -> None:
        """Wait for the end of a request, or of the subscription."""
        either: set[asyncio.Future[Any]] = {poll, self._ended}
        self._waiting += 1
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._waiting -= 1
            self._reclaim()
            raise
        self._waiting -= 1

    def _reclaim(self, _poll: object = None) -> None:
        """Give back what a request has brought, if no caller waits for it."""
        poll = self._poll
        if poll is None or not poll.done() or (self._waiting and not self.closed):
            return
        self._poll = None
        if poll.cancelled():
            return
        if (error := poll.exception()) is not None:
            logger.warning("a request for messages of %r has failed: %s", self.topic, error)
        else:
            self._give_back(poll.result())

    def _give_back(self, received: Sequence[ReceivedMessage]) -> None:
        """Let others have what was not handed out here."""
        if received:
            settlements = [
                HeldSettlement(each, SettleAction.NACK, until=self._held_until(each)) for each in received
            ]
            self._spawn(self._send(settlements), name=f"give back to {self.topic}")

    async def _send(self, batch: Sequence[HeldSettlement]) -> set[HeldSettlement]:
        latest = {each.received: each for each in still_due(batch)}.values()
        done = [each for each in latest if each.action in _DONE]
        kept = [each for each in latest if each.action not in _DONE]
        send = partial(self._connection.call_batch, url=self._reader.url)
        give_up_at = self._connection.give_up_at()
        outcomes = await asyncio.gather(
            send(
                "delete_message_batch",
                [{"ReceiptHandle": each.received.receipt} for each in done],
                give_up_at=give_up_at,
            ),
            send(
                "change_message_visibility_batch",
                [
                    {"ReceiptHandle": each.received.receipt, "VisibilityTimeout": math.ceil(each.seconds)}
                    for each in kept
                ],
                give_up_at=min([give_up_at, *(each.until for each in kept)]),
            ),
        )
        taken: set[HeldSettlement] = set()
        for each, outcome in zip(done + kept, outcomes[0] + outcomes[1], strict=True):
            if outcome is None:
                taken.add(each)
            else:
                # Usually it was settled too late: another member has it by now, or it is gone.
                level = logging.WARNING if isinstance(outcome, UnavailableError) else logging.DEBUG
                logger.log(level, "a settlement is lost, its message comes back: %s", outcome)
        return taken
