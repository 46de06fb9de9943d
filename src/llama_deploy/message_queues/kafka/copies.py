"""Writes copies of messages that come back, and notes about copies whose message is still in use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from llama_deploy.errors import LlamaDeployError
from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX
from llama_deploy.message_queues.broker_connection import NEVER
from llama_deploy.message_queues.dead_letters import is_exhausted, log_dead_letters
from llama_deploy.message_queues.kafka.connection import KafkaConnection
from llama_deploy.message_queues.kafka.envelope import Envelope
from llama_deploy.message_queues.kafka.window import Entry

logger = logging.getLogger(__name__)


class CopyWriter:
    """Moves messages of one group within its topic, or to the dead letters.

    Args:
        connection: The connection to the brokers.
        topic: The topic.
        group: The group.
        on_moved: Called with an entry whose copy is written.
        on_refused: Called with an entry whose copy the brokers refuse, and how often it was delivered.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        topic: str,
        group: str,
        on_moved: Callable[[Entry], None],
        on_refused: Callable[[Entry, int], None],
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._group = group
        self._on_moved = on_moved
        self._on_refused = on_refused
        self._writing: set[asyncio.Task[None]] = set()
        self.in_use: set[Entry] = set()
        """Entries that are handed out here while their copies are in some partition."""

    def is_exhausted(self, envelope: Envelope) -> bool:
        """Return whether a message was delivered as often as it may be."""
        return is_exhausted(self._topic, envelope.attempts, self._connection.config.max_deliveries)

    def move(self, entry: Entry, envelope: Envelope, *, among: Sequence[int] = ()) -> None:
        """Write a copy of a message, which settles the message here.

        Args:
            entry: The message.
            envelope: The headers of its copy.
            among: The partitions to choose from. Empty: all.
        """
        entry.is_leaving = True
        entry.stop_timer()
        self._spawn(self._move(entry, envelope, among))

    def decide(self, entry: Entry, due: float) -> bool:
        """Note when a delivery is due whose message is moving or has moved; return whether it has."""
        if entry.copy is not None:
            self._spawn(self._note(entry, due))
        elif entry.is_leaving:
            entry.verdict = due
        else:
            return False
        return True

    async def wait(self, seconds: float) -> None:
        """Wait until all is written, at most so many seconds."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=seconds)

    def cancel(self) -> None:
        """Stop writing."""
        for task in self._writing:
            task.cancel()

    def _spawn(self, writing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(writing)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _move(self, entry: Entry, envelope: Envelope, among: Sequence[int]) -> None:
        attempts, topic = envelope.attempts, self._topic
        if is_dead := self.is_exhausted(envelope):
            topic, envelope, among = topic + DEAD_LETTERS_SUFFIX, Envelope(), ()
        send = partial(self._connection.send, topic, entry.body, envelope, among=among)
        try:
            partition = await self._connection.retry(send, give_up_at=NEVER)
        except LlamaDeployError as exc:
            logger.warning("message %s of %r comes back late: %r", entry.message.id_, self._topic, exc)
            self._on_refused(entry, attempts)
            return
        if is_dead:
            log_dead_letters(self._topic)
        self._on_moved(entry)
        if envelope.id:
            entry.copy = partition, envelope.id
            self.in_use.add(entry)
            if entry.verdict is not None:
                await self._note(entry, entry.verdict)

    async def _note(self, entry: Entry, due: float) -> None:
        """Write when the copy of a message is due."""
        if entry.copy is None:
            return
        partition, name = entry.copy
        envelope = Envelope(self._group, entry.envelope.attempts + 1, due, name)
        if entry.delivery is None or entry.delivery.is_settled:
            self.in_use.discard(entry)
        send = partial(self._connection.send, self._topic, b"", envelope, among=[partition])
        with suppress(LlamaDeployError):
            await self._connection.retry(send, give_up_at=NEVER)
