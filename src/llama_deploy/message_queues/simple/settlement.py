"""How a delivery of the simple queue is settled, over HTTP and in process alike."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Protocol

from pydantic import Field

from llama_deploy.errors import MessageDecodeError
from llama_deploy.message_queues.base import Delivery
from llama_deploy.messages import QueueMessage

logger = logging.getLogger(__name__)

MAX_SECONDS: Final = 7 * 24 * 3600.0
"""The longest delay or extension."""


class SettleAction(StrEnum):
    """What is to become of a delivery."""

    ACK = "ack"
    """The work is done: forget the message."""
    NACK = "nack"
    """The work failed: hand the message out again, after `seconds`."""
    EXTEND = "extend"
    """The work goes on: wait `seconds` from now before the message counts as unsettled."""
    REJECT = "reject"
    """The message cannot be understood: put it aside as a dead letter at once."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What one consumer says about one delivery."""

    delivery_id: str
    action: SettleAction
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)] = 0.0
    """For `nack` and `extend`."""


class Settle(Protocol):
    """Hands a settlement to the broker."""

    async def __call__(self, settlement: Settlement) -> None:
        """Settle. Never raises: what is lost on the way comes back to the group after a while."""
        ...


class SimpleDelivery(Delivery):
    """A delivery of the simple queue."""

    def __init__(self, message: QueueMessage, *, attempt: int, delivery_id: str, settle: Settle) -> None:
        super().__init__(message, attempt=attempt)
        self._delivery_id = delivery_id
        self._settle = settle

    async def _ack(self) -> None:
        await self._settle(Settlement(self._delivery_id, SettleAction.ACK))

    async def _nack(self, delay: float) -> None:
        await self._settle(Settlement(self._delivery_id, SettleAction.NACK, _bounded(delay)))

    async def _extend(self, seconds: float) -> None:
        await self._settle(Settlement(self._delivery_id, SettleAction.EXTEND, _bounded(seconds)))


async def open_delivery(
    decode: Callable[[], QueueMessage], *, attempt: int, delivery_id: str, settle: Settle
) -> SimpleDelivery | None:
    """Return the delivery of a message, or put it aside and return None if it is not a message."""
    try:
        message = decode()
    except MessageDecodeError as exc:
        logger.error(  # noqa: TRY400 - the error is in the message, not in the code that the traceback shows
            "delivery %s cannot be decoded and becomes a dead letter: %s",
            delivery_id,
            exc,
            extra={"action": "reject", "delivery_id": delivery_id},
        )
        await settle(Settlement(delivery_id, SettleAction.REJECT))
        return None
    return SimpleDelivery(message, attempt=attempt, delivery_id=delivery_id, settle=settle)


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_SECONDS)
