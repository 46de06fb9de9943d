"""What the tests of a message queue start from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import ClassVar

import pytest
import pytest_asyncio

from llama_deploy.message_queues.base import AbstractMessageQueue, Subscription

Connect = Callable[[], Awaitable[AbstractMessageQueue]]
"""Opens one more connection to the broker of the present test."""


@pytest.mark.asyncio
class QueueTests:
    """Tests of a message queue, to which a backend connects. The flags say what the backend is."""

    visibility_timeout: ClassVar[float] = 0.8
    """Seconds, to which the broker of the tests is to be set. On a machine that stands still for half of it,
    tests may fail."""
    max_deliveries: ClassVar[int] = 3
    """To which the broker of the tests is to be set."""
    max_messages_per_topic: ClassVar[int | None] = 50
    """To which the broker of the tests is to be set. None: the broker has no such bound."""
    is_ordered: ClassVar[bool] = True
    """Whether messages of a topic arrive in the order in which they were published."""
    has_groups: ClassVar[bool] = True
    """Whether a topic can have several groups."""
    delays_nacks: ClassVar[bool] = True
    """Whether the broker keeps a message back for the `delay` of its nack."""
    dead_letter_topic: ClassVar[str | None] = "{topic}.dead_letters"
    """Where dead letters can be read. None: nowhere."""
    returns_on_close: ClassVar[bool] = True
    """Whether closing a subscription hands its messages back at once, not by the visibility timeout."""
    topic: ClassVar[str] = "contract.topic"

    @pytest.fixture
    def connect(self) -> Connect:
        """Return a function that connects to a broker which holds nothing yet. To be overridden."""
        raise NotImplementedError("override the fixture `connect`")

    @pytest_asyncio.fixture
    async def queue(self, connect: Connect) -> AsyncIterator[AbstractMessageQueue]:
        """A connection to a fresh broker."""
        async with await connect() as queue:
            yield queue

    @pytest_asyncio.fixture
    async def other(self, connect: Connect) -> AsyncIterator[AbstractMessageQueue]:
        """A second connection to the same broker."""
        async with await connect() as queue:
            yield queue

    @pytest_asyncio.fixture
    async def subscription(self, queue: AbstractMessageQueue) -> AsyncIterator[Subscription]:
        """A member of the topic's default group."""
        async with await queue.subscribe(self.topic) as subscription:
            yield subscription

    async def nothing_comes(self, subscription: Subscription) -> None:
        """Show that nothing comes while anything unsettled would come back."""
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(subscription.receive(1), self.visibility_timeout * 1.5)


async def cancel(*tasks: asyncio.Task[object]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
