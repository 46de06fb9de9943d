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
    returned: list[tuple[int, str, bytes]] = []
    for each in due:
        receipt, payload = each.received.receipt, payload_of(each.action, each.seconds, usual=usual)
        if each.action is SettleAction.NACK:
            returned.append((each.received.number, receipt, payload))
        else:
            await connection.client.publish(receipt, payload)
    # What comes back together comes back in the topic's order.
    await asyncio.gather(
        *(_give_back(connection, receipt, payload) for _, receipt, payload in sorted(returned))
    )
    return due


async def _give_back(connection: LiveConnection, receipt: str, payload: bytes) -> None:
    """Give a message back and wait until the server confirms it, unless its group is gone."""
    with suppress(nats.errors.TimeoutError, nats.errors.NoRespondersError):
        await connection.client.request(receipt, payload, timeout=_CONFIRM_SECONDS)
