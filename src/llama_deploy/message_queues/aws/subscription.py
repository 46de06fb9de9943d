"""Reading a topic of the queue on Amazon SQS: subscriptions and deliveries."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from llama_deploy.errors import LlamaDeployError, UnavailableError
from llama_deploy.message_queues.aws.connection import MAX_ENTRIES, SqsConnection
from llama_deploy.message_queues.aws.reader import ReceivedMessage, SqsReader
from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX, Delivery, Subscription
from llama_deploy.message_queues.dead_letters import decode_message, is_exhausted, log_dead_letters
from llama_deploy.message_queues.held_deliveries import HeldDeliveries, held_until
from llama_deploy.message_queues.settlement_batcher import SettlementBatcher
from llama_deploy.messages import QueueMessage

logger = logging.getLogger(__name__)

_GATHER_SECONDS: Final = 0.01
"""How long settlements gather: no caller waits for them, and each request costs money."""
_MAX_HELD_SECONDS: Final = 43_200
"""How long a message can be kept from others after it was received ("Visibility timeout")."""


class Spawn(Protocol):
    """Starts a background task that ends by itself; or, if it is endless, when the queue is closed."""

    def __call__(self, work: Any, *, name: str, endless: bool = False) -> asyncio.Task[Any]:
        """Start the task."""
        ...


@dataclass(frozen=True, slots=True)
class SqsSettlement:
    """What the service is told about one delivery."""

    receipt: str
    seconds: int | None
    """For how long it is kept from all members, from now. None: forever, it is done."""
    until: float = math.inf
    """When the delivery is held no longer, by the loop's clock: the settlement is not sent then."""


class SqsSubscription(Subscription):
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
        put: Callable[[str, str], Awaitable[None]],
        spawn: Spawn,
    ) -> None:
        super().__init__(topic, visibility_timeout=float(connection.config.visibility_timeout))
        self.held = HeldDeliveries[str]()
        """Unsettled deliveries, by their receipts."""
        self._connection = connection
        self._reader = reader
        self._put = put
        self._spawn = spawn
        self._poll: asyncio.Task[list[ReceivedMessage]] | None = None
        self._waiting = 0
        """How many callers wait for the request."""
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settlements: SettlementBatcher[SqsSettlement] = SettlementBatcher(
            self._send,
            name=f"SQS settler of {topic}",
            ack_delay=_GATHER_SECONDS,
            delay=_GATHER_SECONDS,
            max_batch=10 * MAX_ENTRIES,
        )

    def settle(self, settlement: SqsSettlement) -> asyncio.Future[bool]:
        """Send a settlement with the next batch. The future says whether it was taken."""
        return self._settlements.submit(settlement, is_ack=settlement.seconds is None)

    def is_exhausted(self, deliveries: int) -> bool:
        """Return whether a message was delivered as often as it may be."""
        return is_exhausted(self.topic, deliveries, self._connection.config.max_deliveries)

    def move_to_dead_letters(self, received: ReceivedMessage) -> asyncio.Task[None]:
        """Move a message to the dead letters; one that cannot be moved comes back."""
        return self._spawn(self._move_to_dead_letters(received), name=f"dead letter of {self.topic}")

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
        return self._open(received[:max_messages])

    async def _close(self) -> None:
        self._ended.set_result(None)
        self._reclaim()
        for receipt, until in self.held.clear().items():
            self.settle(SqsSettlement(receipt, 0, until))
        await self._settlements.close()

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
            settlements = [SqsSettlement(each.receipt, 0, self._held_until(each)) for each in received]
            self._spawn(self._send(settlements), name=f"give back to {self.topic}")

    def _open(self, received: Sequence[ReceivedMessage]) -> list[Delivery]:
        """Return the deliveries of messages, and move those to the dead letters that belong there."""
        self.held.drop_expired()
        now = asyncio.get_running_loop().time()
        deliveries: list[Delivery] = []
        for each in received:
            if self._held_until(each) <= now:
                continue  # others may have it
            exhausted = self.is_exhausted(each.attempt - 1)
            message = None if exhausted else decode_message(each.body, topic=self.topic)
            if message is None:
                self.move_to_dead_letters(each)
                continue
            self.held.add(each.receipt, self._held_until(each))
            deliveries.append(SqsDelivery(self, each, message))
        return deliveries

    def _held_until(self, received: ReceivedMessage) -> float:
        return held_until(self.visibility_timeout, since=received.since)

    async def _move_to_dead_letters(self, received: ReceivedMessage) -> None:
        try:
            await self._put(self.topic + DEAD_LETTERS_SUFFIX, received.body)
        except LlamaDeployError as exc:
            logger.warning("a dead letter of %r could not be stored and comes back: %s", self.topic, exc)
            return
        log_dead_letters(self.topic)
        await self._send([SqsSettlement(received.receipt, None)])

    async def _send(self, batch: Sequence[SqsSettlement]) -> list[bool]:
        now = asyncio.get_running_loop().time()
        latest = {each.receipt: each for each in batch if each.until > now}.values()
        done = [each for each in latest if each.seconds is None]
        kept = [each for each in latest if each.seconds is not None]
        send = partial(self._connection.call_batch, url=self._reader.url)
        give_up_at = self._connection.give_up_at()
        outcomes = await asyncio.gather(
            send(
                "delete_message_batch",
                [{"ReceiptHandle": each.receipt} for each in done],
                give_up_at=give_up_at,
            ),
            send(
                "change_message_visibility_batch",
                [{"ReceiptHandle": each.receipt, "VisibilityTimeout": each.seconds} for each in kept],
                give_up_at=min([give_up_at, *(each.until for each in kept)]),
            ),
        )
        taken: set[str] = set()
        for each, outcome in zip(done + kept, outcomes[0] + outcomes[1], strict=True):
            if outcome is None:
                taken.add(each.receipt)
            else:
                # Usually it was settled too late: another member has it by now, or it is gone.
                level = logging.WARNING if isinstance(outcome, UnavailableError) else logging.DEBUG
                logger.log(level, "a settlement is lost, its message comes back: %s", outcome)
        return [each.receipt in taken for each in batch]


class SqsDelivery(Delivery):
    """A message that the service keeps from others until it is settled or its visibility timeout ends."""

    def __init__(
        self, subscription: SqsSubscription, received: ReceivedMessage, message: QueueMessage
    ) -> None:
        super().__init__(message, attempt=received.attempt)
        self._received = received
        self._subscription = subscription

    async def _ack(self) -> None:
        self._subscription.held.remove(self._received.receipt)
        self._subscription.settle(SqsSettlement(self._received.receipt, None))

    async def _nack(self, delay: float) -> None:
        """One that was held for too long has come back already, or is about to."""
        until = self._subscription.held.remove(self._received.receipt)
        if not until:
            return
        if self._subscription.is_exhausted(self.attempt):
            await asyncio.wait([self._subscription.move_to_dead_letters(self._received)])
        else:
            self._subscription.settle(SqsSettlement(self._received.receipt, self._possible(delay), until))

    async def _extend(self, seconds: float) -> None:
        """A message cannot be kept for more than 12 hours after it was received."""
        held, receipt = self._subscription.held, self._received.receipt
        if until := held.until(receipt):
            kept = self._possible(seconds)
            longer = held_until(kept, since=asyncio.get_running_loop().time())
            held.extend_when(self._subscription.settle(SqsSettlement(receipt, kept, until)), receipt, longer)

    def _possible(self, seconds: float) -> int:
        """Return whole seconds, rounded up, that the service accepts."""
        left = self._received.since + _MAX_HELD_SECONDS - asyncio.get_running_loop().time()
        return math.ceil(max(0.0, min(seconds, left - 1)))
