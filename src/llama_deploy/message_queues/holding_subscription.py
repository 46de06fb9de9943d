"""A subscription that settles a delivery only while it holds it; see `held_deliveries`."""

from __future__ import annotations

import asyncio
import logging
import math
from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from llama_deploy.errors import LlamaDeployError
from llama_deploy.message_queues.base import Delivery, Subscription
from llama_deploy.message_queues.broker_queue import BrokerQueueConfig
from llama_deploy.message_queues.dead_letters import decode_message, is_exhausted, log_dead_letters
from llama_deploy.message_queues.held_deliveries import HeldDeliveries, held_until
from llama_deploy.message_queues.settlement import SettleAction, SettledDelivery
from llama_deploy.message_queues.settlement_batcher import SettlementBatcher

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedMessage:
    """A message as the broker has handed it over."""

    body: bytes
    receipt: str
    """By which the broker knows the delivery."""
    attempt: int
    since: float
    """About when the broker handed it over, by the loop's clock."""
    number: int = 0
    """Its place in the topic, where the broker tells it."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldSettlement:
    """What the broker is told about one delivery."""

    received: ReceivedMessage
    action: SettleAction
    """`REJECT` says that the message is among the dead letters."""
    seconds: float = 0.0
    until: float = math.inf
    """When the delivery is held no longer, by the loop's clock: the settlement is not sent then."""


class HeldDelivery(SettledDelivery[ReceivedMessage]):
    """A delivery of a message that its member moves to the dead letters after the last nack."""

    async def _nack(self, delay: float) -> None:
        """Returns when the dead letter is stored, if the message becomes one."""
        moving = self._settle(self.key, SettleAction.NACK, delay)
        if isinstance(moving, asyncio.Task):
            await asyncio.wait([moving])


def still_due(batch: Sequence[HeldSettlement]) -> list[HeldSettlement]:
    """Return the settlements of deliveries that are still held."""
    now = asyncio.get_running_loop().time()
    return [each for each in batch if each.until > now]


class HoldingSubscription(Subscription):
    """Settles what it holds, and moves to the dead letters what was delivered too often.

    Args:
        topic: The topic.
        config: The settings.
        gather_seconds: How long settlements wait for others to be sent with them.
        max_batch: How many are sent together at most.
    """

    def __init__(
        self, topic: str, config: BrokerQueueConfig, *, gather_seconds: float = 0.0, max_batch: int = 1024
    ) -> None:
        super().__init__(topic, visibility_timeout=float(config.visibility_timeout))
        self._max_deliveries = config.max_deliveries
        self._held = HeldDeliveries[ReceivedMessage]()
        self._moving: set[asyncio.Task[None]] = set()
        """Dead letters that are on their way."""
        self._settlements: SettlementBatcher[HeldSettlement] = SettlementBatcher(
            self._flush,
            name=f"settler of {topic}",
            ack_delay=gather_seconds,
            delay=gather_seconds,
            max_batch=max_batch,
        )

    @abstractmethod
    async def _send(self, batch: Sequence[HeldSettlement]) -> Collection[HeldSettlement]:
        """Send those settlements that are `still_due`; return those that the broker has taken."""

    @abstractmethod
    async def _store_dead_letter(self, received: ReceivedMessage) -> None:
        """Store a copy of a message among the dead letters of the topic."""

    def _possible(self, received: ReceivedMessage, seconds: float) -> float:  # noqa: ARG002
        """Return the nearest delay or extension that the broker can do."""
        return seconds

    def _open(self, messages: Iterable[ReceivedMessage]) -> list[Delivery]:
        """Return the deliveries of those messages that are still held and have not become dead letters."""
        self._held.drop_expired()
        deliveries: list[Delivery] = []
        for each in messages:
            if not self._held.until(each):
                continue  # others may have it
            message = None
            if not is_exhausted(self.topic, each.attempt - 1, self._max_deliveries):
                message = decode_message(each.body, topic=self.topic)
            if message is None:
                self._move_to_dead_letters(each)
            else:
                settle = self._settle
                deliveries.append(HeldDelivery(message, attempt=each.attempt, key=each, settle=settle))
        return deliveries

    def _held_until(self, received: ReceivedMessage) -> float:
        return held_until(self.visibility_timeout, since=received.since)

    def _settle(
        self, received: ReceivedMessage, action: SettleAction, seconds: float = 0.0
    ) -> asyncio.Task[None] | None:
        """Settle a delivery. One that was held for too long has come back already, or is about to.

        Returns:
            The task that moves it to the dead letters, or None.
        """
        moving = None
        if action is SettleAction.ACK:
            self._held.remove(received)
            self._tell(HeldSettlement(received, action))
        elif until := self._held.until(received):
            seconds = self._possible(received, seconds)
            settlement = HeldSettlement(received, action, seconds, until)
            if action is SettleAction.EXTEND:
                longer = held_until(seconds, since=asyncio.get_running_loop().time())
                self._held.extend_when(self._tell(settlement), received, longer)
            elif is_exhausted(self.topic, received.attempt, self._max_deliveries):
                moving = self._move_to_dead_letters(received)
            else:
                self._held.remove(received)
                self._tell(settlement)
        return moving

    def _tell(self, settlement: HeldSettlement) -> asyncio.Future[bool]:
        """Send a settlement with the next batch. The future says whether it was taken."""
        return self._settlements.submit(settlement, is_ack=settlement.action is SettleAction.ACK)

    async def _flush(self, batch: Sequence[HeldSettlement]) -> list[bool]:
        taken = await self._send(batch)
        return [each in taken for each in batch]

    async def _end_settling(self) -> None:
        """Give back what is held, and send all settlements, those of dead letters on their way too."""
        for received, until in self._held.clear().items():
            self._tell(HeldSettlement(received, SettleAction.NACK, until=until))
        await asyncio.gather(*self._moving)
        await self._settlements.close()

    def _move_to_dead_letters(self, received: ReceivedMessage) -> asyncio.Task[None]:
        """Move a message to the dead letters; one that cannot be moved comes back."""
        self._held.remove(received)
        moving = asyncio.create_task(self._move(received), name=f"dead letter of {self.topic}")
        self._moving.add(moving)
        moving.add_done_callback(self._moving.discard)
        return moving

    async def _move(self, received: ReceivedMessage) -> None:
        try:
            await self._store_dead_letter(received)
        except LlamaDeployError as exc:
            logger.warning("a dead letter of %r could not be stored and comes back: %s", self.topic, exc)
        else:
            log_dead_letters(self.topic)
            self._tell(HeldSettlement(received, SettleAction.REJECT))
