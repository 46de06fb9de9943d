"""Settlements: what a member says about a delivery, and deliveries that hand it to their broker at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Any, Final, Generic, Protocol, TypeVar

from llama_deploy.message_queues.base import Delivery
from llama_deploy.message_queues.dead_letters import decode_message
from llama_deploy.messages import QueueMessage

K = TypeVar("K")
K_contra = TypeVar("K_contra", contravariant=True)

MAX_SECONDS: Final = 7 * 24 * 3600.0
"""The longest delay or extension."""


class SettleAction(StrEnum):
    """What is to become of a delivery."""

    ACK = "ack"
    """The work is done: forget the message."""
    NACK = "nack"
    """The work failed: hand the message out again, after a delay."""
    EXTEND = "extend"
    """The work goes on: wait so many seconds from now before the message counts as unsettled."""
    REJECT = "reject"
    """The message cannot be understood: put it aside as a dead letter at once."""


class Settle(Protocol[K_contra]):
    """Hands a settlement to the broker, now or with the next batch."""

    def __call__(self, key: K_contra, action: SettleAction, seconds: float = 0.0, /) -> object:
        """Settle. Never raises: what is lost on the way comes back to the group after a while."""
        ...


class SettledDelivery(Delivery, Generic[K]):
    """A delivery that the broker knows by a key.

    Args:
        message: The message.
        attempt: As for every delivery.
        key: By which the broker knows it.
        settle: Called with the key.
    """

    def __init__(self, message: QueueMessage, *, attempt: int, key: K, settle: Settle[K]) -> None:
        super().__init__(message, attempt=attempt)
        self.key = key
        self._settle = settle

    async def _ack(self) -> None:
        self._settle(self.key, SettleAction.ACK)

    async def _nack(self, delay: float) -> None:
        self._settle(self.key, SettleAction.NACK, _bounded(delay))

    async def _extend(self, seconds: float) -> None:
        self._settle(self.key, SettleAction.EXTEND, _bounded(seconds))


def open_deliveries(
    received: Iterable[tuple[K, int, Any]],
    *,
    topic: str,
    settle: Settle[K],
    decode: Callable[[Any], QueueMessage] = QueueMessage.decode,
) -> Iterator[SettledDelivery[K]]:
    """Yield the deliveries of messages; what is not a message is rejected.

    Args:
        received: The key of each, its attempt, and the message as it came.
        topic: The topic.
        settle: Settles them.
        decode: Returns the message, or raises `MessageDecodeError`.
    """
    for key, attempt, body in received:
        message = decode_message(body, topic=topic, decode=decode)
        if message is None:
            settle(key, SettleAction.REJECT)
        else:
            yield SettledDelivery(message, attempt=attempt, key=key, settle=settle)


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_SECONDS)
