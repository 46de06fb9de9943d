"""Reading messages that an earlier or another control plane has left in the outbox, page by page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import Outage, retry
from llama_deploy.control_plane.dispatch.outbox_relay import OutboxRelay
from llama_deploy.control_plane.storage.outgoing import Outgoing
from llama_deploy.control_plane.storage.writer import Writer
from llama_deploy.errors import LlamaDeployError, MessageDecodeError
from llama_deploy.messages import QueueMessage
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.records import OutboxRecord
from llama_deploy.types.json_values import utf8_bytes

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS: Final = 0.5
"""Between two looks at the outbox. Only messages of a control plane that has died have to wait for one."""
_BACKOFF: Final = Backoff(first=_INTERVAL_SECONDS, longest=_INTERVAL_SECONDS)
_KEEP: Final = timedelta(seconds=5)
"""How long a message that was taken over is left to the control plane that took it."""
_PAGE: Final = 500
_MAX_NOTED: Final = 10_000
"""How many messages that cannot be read are remembered, so that each is logged once."""


@dataclass(slots=True, eq=False)
class OutboxReader:
    """Hands messages from the outbox to the relay, which holds a bounded number of them.

    A message that this release cannot read stays in the outbox, for a control plane of the release that has
    written it.
    """

    store: StateStore
    """Holds the outbox."""
    writer: Writer
    """Deletes messages that were published."""
    relay: OutboxRelay
    clock: Callable[[], datetime]
    """Returns the present time, aware, UTC."""
    _outage: Outage = field(default_factory=lambda: Outage(on_start=_log_start, on_end=_log_end), init=False)
    _unreadable: dict[str, None] = field(default_factory=dict, init=False)
    """The ids of messages that cannot be read and are logged."""
    _read_to: dict[str, int] = field(default_factory=dict, init=False)
    """The position up to which a topic was read, while more of it is to be read."""

    async def resend_page(self, *, after: int = 0) -> int | None:
        """Publish a page of the whole outbox, as the only control plane on its store.

        Args:
            after: The position at which the page before ended.

        Returns:
            The position at which this page ended. None: it was the last one.
        """
        full = self.relay.full_topics()
        page = await self.store.read(lambda tx: tx.outbox.load(after=after, limit=_PAGE, except_topics=full))
        self.relay.leave(full)
        self._send(page.values())
        return max(page) if len(page) == _PAGE else None

    async def resend_rest(self, after: int | None) -> None:
        """Publish the pages that follow. What the relay does not hold is left to `read_on`."""
        while after is not None:
            resend = partial(self.resend_page, after=after)
            after = await retry(resend, backoff=_BACKOFF, retry_on=lambda _: True, outage=self._outage)

    async def read_on(self) -> None:
        """Publish what the relay has left in the outbox, each topic when it goes on, until cancelled."""
        while True:
            topic, left = await self.relay.next_drained()
            if self.store.shared:
                # Whoever has room takes it over, here or elsewhere.
                self.relay.resume(topic, [], read=left)
            else:
                read = partial(self._read_page_of, topic, left)
                await retry(read, backoff=_BACKOFF, retry_on=lambda _: True, outage=self._outage)

    async def _read_page_of(self, topic: str, left: int) -> None:
        # Otherwise the page would begin with messages that were published.
        await self.writer.flush_sent()
        after = self._read_to.pop(topic, 0)
        page = await self.store.read(lambda tx: tx.outbox.load(after=after, limit=_PAGE, topic=topic))
        is_last = len(page) < _PAGE
        if not is_last:
            self._read_to[topic] = max(page)
        messages = list(self._readable(page.values()))
        self.relay.resume(topic, messages, read=left if is_last else 0)

    async def take_over(self) -> None:
        """Take over messages of other control planes that are overdue, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            await retry(self._take_over_page, backoff=_BACKOFF, retry_on=lambda _: True, outage=self._outage)

    async def _take_over_page(self) -> None:
        # Otherwise others would take over messages that were published from here.
        await self.writer.flush_sent()
        now, full = self.clock(), self.relay.full_topics()
        taken = await self.store.transact(
            lambda tx: tx.outbox.take(now=now, until=now + _KEEP, limit=_PAGE, except_topics=full),
            synced=False,
        )
        self._send(taken)
        if taken:
            logger.info("%d messages are taken over", len(taken), extra={"action": "takeover"})

    def _send(self, messages: Iterable[OutboxRecord]) -> None:
        self.relay.send(list(self._readable(messages)))

    def _readable(self, messages: Iterable[OutboxRecord]) -> Iterator[Outgoing]:
        for item in messages:
            try:
                yield Outgoing(item.topic, QueueMessage.decode(item.message), utf8_bytes(item.message))
            except MessageDecodeError as exc:
                self._note_unreadable(item, exc)

    def _note_unreadable(self, item: OutboxRecord, error: MessageDecodeError) -> None:
        if item.message_id in self._unreadable:
            return
        self._unreadable[item.message_id] = None
        if len(self._unreadable) > _MAX_NOTED:
            del self._unreadable[next(iter(self._unreadable))]
        logger.warning(
            "message %s for topic %s stays in the outbox, because it cannot be read: %s; start a control"
            " plane of the release that has written it",
            item.message_id,
            item.topic,
            error,
            extra={"action": "outbox_unreadable", "message_id": item.message_id},
        )


def _log_start(error: LlamaDeployError) -> None:
    logger.warning("the outbox cannot be read; retrying: %s", error, extra={"action": "takeover"})


def _log_end() -> None:
    logger.info("the outbox can be read again", extra={"action": "takeover"})
