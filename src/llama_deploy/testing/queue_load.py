"""Publishers and a reader at work while a test breaks the broker or the connection to it."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from llama_deploy.message_queues.base import AbstractMessageQueue, MessageQueueConfig, Subscription
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.numbered_messages import number_of, numbered


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How large a load is, and how long it may take."""

    publishers: int = 8
    max_messages: int = 16
    """How many messages are received at once."""
    max_ahead: int = sys.maxsize
    """How far the publishers may be ahead of the reader."""
    step: int = 50
    """How many messages count as progress."""
    step_seconds: float = 30.0
    """How long they may take."""
    rest_seconds: float = 30.0
    """How long it may take until all has come."""
    interrupts: bool = True
    """Whether the reader is cancelled before it reads the rest, and gets again what it had in hand."""


USUAL: Final = Pace()
TOPIC: Final = "namespace.service"


class Load:
    """Publishers and a reader that count what was accepted and what came.

    Args:
        publisher: Publishes.
        subscription: Reads.
        pace: How much, and how fast.
    """

    def __init__(self, publisher: AbstractMessageQueue, subscription: Subscription, pace: Pace) -> None:
        self.accepted: set[int] = set()
        """The numbers of the messages that the broker has accepted."""
        self.came: Counter[int] = Counter()
        """How often each number was received."""
        self._publisher = publisher
        self._subscription = subscription
        self._pace = pace

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish and read."""
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read())
            publishing = [group.create_task(self._publish(number)) for number in range(self._pace.publishers)]
            yield
            for task in publishing:
                task.cancel()
            if not self._pace.interrupts:
                await eventually(self._all_came, seconds=self._pace.rest_seconds)
            reading.cancel()

    async def progress(self) -> None:
        """Wait until some more messages were accepted, and as many more came."""
        accepted, came = len(self.accepted), len(self.came)
        await eventually(
            lambda: min(len(self.accepted) - accepted, len(self.came) - came) >= self._pace.step,
            seconds=self._pace.step_seconds,
        )

    async def read_the_rest(self) -> None:
        """Read until all that was accepted has come."""
        async with asyncio.timeout(self._pace.rest_seconds):
            while not self._all_came():
                await self._read_some()

    def _all_came(self) -> bool:
        return self.accepted <= set(self.came)

    async def _publish(self, number: int) -> None:
        while True:
            await self._publisher.publish(numbered(number), TOPIC)
            self.accepted.add(number)
            number += self._pace.publishers
            await eventually(
                lambda: len(self.accepted) - len(self.came) < self._pace.max_ahead,
                seconds=self._pace.rest_seconds,
            )

    async def _read(self) -> None:
        while True:
            await self._read_some()

    async def _read_some(self) -> None:
        for delivery in await self._subscription.receive(self._pace.max_messages):
            self.came[number_of(delivery)] += 1
            await delivery.ack()


@asynccontextmanager
async def load_over(
    publisher: MessageQueueConfig, reader: MessageQueueConfig, pace: Pace = USUAL
) -> AsyncIterator[Load]:
    """Run a load; at its end everything that was accepted must have come."""
    async with (
        await publisher.connect() as publishing,
        await reader.connect() as reading,
        await reading.subscribe(TOPIC) as subscription,
    ):
        load = Load(publishing, subscription, pace)
        async with load.running():
            await load.progress()
            yield load
            await load.progress()
        await load.read_the_rest()
