"""Handing messages to the queue that another control plane has left in the outbox."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.control_plane.dispatch.outbox_relay import OutboxRelay
from llama_deploy.control_plane.storage.outgoing import Outgoing
from llama_deploy.control_plane.storage.writer import Writer
from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages import QueueMessage
from llama_deploy.state_stores.base import StateStore

logger = logging.getLogger(__name__)

_LOOK_EVERY_SECONDS: Final = 0.5
"""Nobody waits for it: a message is here only when the control plane that wrote it has died."""
_KEEP: Final = timedelta(seconds=5)
"""How long a message that was taken over is left to whoever took it."""
_PAGE: Final = 500
_MAX_WAITING: Final = 1000
"""With so many messages that wait for the queue here, no others are taken over."""


class Takeover:
    """Looks after the outbox of a store that several control planes share.

    Args:
        store: Holds the outbox.
        writer: Deletes what was sent.
        relay: Sends.
        clock: Returns the present time, aware, UTC.
    """

    def __init__(
        self, *, store: StateStore, writer: Writer, relay: OutboxRelay, clock: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._writer = writer
        self._relay = relay
        self._clock = clock

    async def run(self) -> None:
        """Look again and again until cancelled. Errors are logged, and the next look makes them good."""
        failed = False
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            try:
                # Otherwise others would take over what was sent from here.
                await self._writer.flush_sent()
                await self._take_over()
                failed = False
            except LlamaDeployError as exc:
                level = logging.DEBUG if failed else logging.WARNING
                failed = True
                logger.log(level, "the outbox cannot be read: %s", exc, extra={"action": "takeover"})

    async def _take_over(self) -> None:
        if self._relay.backlog >= _MAX_WAITING:
            return
        now = self._clock()
        taken = await self._store.transact(
            lambda tx: tx.outbox.take(now=now, until=now + _KEEP, limit=_PAGE), synced=False
        )
        self._relay.send([Outgoing(item.topic, QueueMessage.decode(item.message)) for item in taken])
        if taken:
            logger.info("%d messages are taken over", len(taken), extra={"action": "takeover"})
