"""Reading a topic of the queue on Redis: subscriptions and deliveries."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final
from urllib.parse import quote
from weakref import WeakValueDictionary

from llama_deploy.errors import (
    ConfigError,
    LlamaDeployError,
    QueueFullError,
    TopicNotFoundError,
    UnavailableError,
)
from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX, Delivery
from llama_deploy.message_queues.dead_letters import log_dead_letters
from llama_deploy.message_queues.polling_subscription import PollingSubscription
from llama_deploy.message_queues.redis.connection import RedisConnection
from llama_deploy.message_queues.settlement import MAX_SECONDS, SettleAction, open_deliveries
from llama_deploy.message_queues.settlement_batcher import SettlementBatcher
from llama_deploy.types import generate_id

logger = logging.getLogger(__name__)

_ACK_SECONDS: Final = 0.01
_MAX_IDLE_MS: Final = 3600 * 1000
"""The server forgets members that hold nothing and were not seen for so long."""
_UNLIMITED: Final = 2**53
_MAX_UNBLOCK_ATTEMPTS: Final = 20


Settlement = tuple[SettleAction, str, int, int]
"""The action, the entry, its attempt, and milliseconds."""


class RedisSubscription(PollingSubscription):
    """Reads one topic over a connection of its own.

    Args:
        connection: The connection to the server.
        topic: The topic.
        group: The group.
        lifetime: Seconds without a reader after which the server drops the topic. 0: never.
    """

    def __init__(self, connection: RedisConnection, *, topic: str, group: str, lifetime: float) -> None:
        config = connection.config
        super().__init__(topic, visibility_timeout=config.visibility_timeout)
        self._connection = connection
        self._group = group
        self._lifetime = lifetime
        self._consumer = generate_id()
        self._keys = _keys(topic, group)
        is_dead = topic.endswith(DEAD_LETTERS_SUFFIX)
        self._limits = (_UNLIMITED if is_dead else config.max_deliveries, config.max_dead_letters)
        self._reader = connection.client(wait=2 * config.timeout)
        self._reader_id: int | None = None
        """By which the server knows the connection; None: the last answer may be lost."""
        self._claim_at = 0.0
        self._has_claimed = False
        """Whether the server has ever permitted it."""
        self._in_hand: WeakValueDictionary[str, Delivery] = WeakValueDictionary()
        self._settlements: SettlementBatcher[Settlement] = SettlementBatcher(
            self._send, name="redis settler", ack_delay=_ACK_SECONDS, max_batch=512
        )

    async def join(self, start: str = "$") -> None:
        """Create topic and group where they do not exist.

        Args:
            start: Where a new group begins: `$`, the end of the topic, or `0`.
        """
        await self._run("join", start, _MAX_IDLE_MS)

    def settle(self, delivery: tuple[str, int], action: SettleAction, seconds: float = 0.0) -> None:
        """Send a settlement with the next batch."""
        if action is SettleAction.NACK:
            self._claim_at = 0.0  # what comes back is delivered before what is new
        settlement = (action, *delivery, _milliseconds(seconds))
        self._settlements.submit(settlement, is_ack=action is SettleAction.ACK)

    async def _close(self) -> None:
        await self._settlements.close()
        # The server must not send a message to a member that is gone.
        try:
            for _ in range(_MAX_UNBLOCK_ATTEMPTS):  # the read may not have begun yet
                if self._poll is None or self._poll.done():
                    break
                await self._connection.unblock(self._reader_id)
                await asyncio.wait([self._poll], timeout=_ACK_SECONDS)
        except LlamaDeployError as exc:
            logger.debug("the wait could not be ended at the server: %s", exc)
        await self._end_poll()
        try:
            await self._run("leave")
        except LlamaDeployError as exc:
            logger.warning("could not tell %s that a subscription ends: %s", self._connection.broker, exc)
        await self._reader.aclose()

    async def _fetch(self, max_messages: int) -> list[Delivery]:
        try:
            return await self._connection.retry_forever(
                partial(self._fetch_once, max_messages), was_granted=lambda: self._has_claimed
            )
        except TopicNotFoundError:  # it has expired, or the server has lost its memory
            await self._connection.retry_forever(partial(self.join, "0"))
            return []

    async def _fetch_once(self, max_messages: int) -> list[Delivery]:
        now = asyncio.get_running_loop().time
        try:
            if self._reader_id is None:
                await self._recover()
            if now() >= self._claim_at and (claimed := await self._claim(max_messages)):
                return claimed
            seconds = min(self._claim_at - now(), 2 * self._connection.config.timeout)
            return await self._read(max_messages, seconds=seconds)
        except QueueFullError as exc:  # to write a dead letter takes memory
            raise UnavailableError(str(exc)) from exc
        except (UnavailableError, ConfigError):
            self._reader_id = None
            raise

    async def _recover(self) -> None:
        """Return messages that the server has sent but that never arrived here."""
        await self._settlements.wait_sent()
        with self._connection.translated():
            reader_id = await self._reader.client_id()
            held: Any = await self._reader.xpending_range(
                self._keys[0], self._group, "-", "+", 1000, self._consumer
            )
        lost: list[Settlement] = [
            (SettleAction.NACK, entry, each["times_delivered"], 0)
            for each in held
            if (entry := each["message_id"].decode()) not in self._in_hand
        ]
        if lost:
            await self._send(lost)
            self._claim_at = 0.0
        self._reader_id = reader_id

    async def _claim(self, max_messages: int) -> list[Delivery]:
        """Take what has come back."""
        await self._settlements.wait_sent()
        begun = asyncio.get_running_loop().time()
        visibility = _milliseconds(self.visibility_timeout)
        wait, dead, claimed = await self._run("claim", *self._limits, max_messages, visibility)
        self._has_claimed = True
        self._claim_at = begun + min(wait / 1000, self._lifetime / 3 or math.inf)
        log_dead_letters(self.topic, count=dead)
        return self._open(claimed)

    async def _read(self, max_messages: int, *, seconds: float) -> list[Delivery]:
        """Take what is new, or wait for it."""
        if self.closed:
            return []
        stream, _, bell, _ = self._keys
        with self._connection.translated():
            answer: Any = await self._reader.xreadgroup(
                self._group,
                self._consumer,
                {stream: ">", bell: ">"},
                count=max_messages,
                block=max(_milliseconds(seconds), 1),
            )
        fresh: list[Delivery] = []
        for key, entries in answer:
            if key.decode() == bell:
                self._claim_at = 0.0
            else:
                fresh = self._open((entry, 1, fields.get(b"m", b"")) for entry, fields in entries)
        return fresh

    def _open(self, entries: Iterable[tuple[bytes, int, bytes]]) -> list[Delivery]:
        received = (((entry.decode(), attempt), attempt, body) for entry, attempt, body in entries)
        opened = list(open_deliveries(received, topic=self.topic, settle=self.settle))
        self._in_hand.update({delivery.key[0]: delivery for delivery in opened})
        return [*opened]

    async def _send(self, batch: Sequence[Settlement]) -> list[bool]:
        arguments: Iterable[Any] = chain.from_iterable(batch)
        dead = await self._connection.retry(partial(self._run, "settle", *self._limits, *arguments))
        log_dead_letters(self.topic, count=dead)
        return [True] * len(batch)

    async def _run(self, action: str, *arguments: str | int) -> Any:
        common = (self._group, self._consumer, _milliseconds(self._lifetime))
        return await self._connection.run(action, self._keys, *common, *arguments)


def stream_of(topic: str) -> str:
    """Return the key of the stream that holds a topic."""
    return f"llama_deploy:topic:{topic}"


def _keys(topic: str, group: str) -> list[str]:
    """Return the keys of a group, in the order that `actions.lua` expects."""
    suffix = f"{quote(group, safe='')}:{topic}"
    deadlines, bell = f"llama_deploy:deadlines:{suffix}", f"llama_deploy:bell:{suffix}"
    return [stream_of(topic), deadlines, bell, stream_of(topic + DEAD_LETTERS_SUFFIX)]


def _milliseconds(seconds: float) -> int:
    return math.ceil(min(max(seconds, 0.0), MAX_SECONDS) * 1000)
