"""How settlements are sent to the server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import nats.errors

from llama_deploy.message_queues.holding_subscription import HeldSettlement, still_due
from llama_deploy.message_queues.nats.connection import LiveConnection
from llama_deploy.message_queues.nats.wire import payload_of
from llama_deploy.message_queues.settlement import SettleAction

_CONFIRM_SECONDS: Final = 2.0


async def send(
    connection: LiveConnection, batch: Sequence[HeldSettlement], *, usual: float
) -> list[HeldSettlement]:
    """Send settlements that are still due; return them.

    Args:
        connection: The connection to the server.
        batch: The settlements.
        usual: The visibility timeout of the group.
    """
    due = still_due(batch)
    returned: list[HeldSettlement] = []
    for each in due:
        if each.action is SettleAction.NACK:
            returned.append(each)
        else:
            payload = payload_of(each.action, each.seconds, usual=usual)
            await connection.client.publish(each.received.receipt, payload)
    # What comes back together comes back in the topic's order.
    returned.sort(key=lambda each: each.received.number)
    await asyncio.gather(*(_give_back(connection, each, usual) for each in returned))
    return due


async def _give_back(connection: LiveConnection, settlement: HeldSettlement, usual: float) -> None:
    """Give a message back and wait until the server confirms it, unless its group is gone."""
    payload = payload_of(settlement.action, settlement.seconds, usual=usual)
    with suppress(nats.errors.TimeoutError, nats.errors.NoRespondersError):
        await connection.client.request(settlement.received.receipt, payload, timeout=_CONFIRM_SECONDS)
