"""Settlements, and how they are sent to the server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import nats.errors

from llama_deploy.message_queues.nats.connection import LiveConnection

_CONFIRM_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class NatsSettlement:
    """What the server is told about one delivery."""

    reply: str
    payload: bytes
    returned: int = 0
    """The sequence of a message that comes back, 0 for one that does not."""
    until: float = math.inf
    """When the delivery is held no longer, by the loop's clock: the settlement is not sent then."""


async def send(connection: LiveConnection, batch: Sequence[NatsSettlement]) -> set[NatsSettlement]:
    """Send the settlements of deliveries that are still held; return them."""
    now = asyncio.get_running_loop().time()
    due = [each for each in batch if each.until > now]
    for settlement in due:
        if not settlement.returned:
            await connection.client.publish(settlement.reply, settlement.payload)
    # What comes back together comes back in the topic's order.
    returned = sorted((each for each in due if each.returned), key=lambda each: each.returned)
    await asyncio.gather(*(_give_back(connection, each) for each in returned))
    return set(due)


async def _give_back(connection: LiveConnection, settlement: NatsSettlement) -> None:
    """Give a message back and wait until the server confirms it, unless its group is gone."""
    with suppress(nats.errors.TimeoutError, nats.errors.NoRespondersError):
        await connection.client.request(settlement.reply, settlement.payload, timeout=_CONFIRM_SECONDS)
