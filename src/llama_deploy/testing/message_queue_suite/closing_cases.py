"""Closing: subscriptions, connections and consumers."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import pytest

from llama_deploy.errors import ClosedError
from llama_deploy.message_consumers import CallableMessageConsumer
from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.message_queue_suite.base import Connect, QueueTests
from llama_deploy.testing.numbered_messages import number_of, publish, receive_one, take


class ClosingTests(QueueTests):
    """Who leaves a queue leaves its messages to others."""

    async def test_closing_a_subscription_hands_back_what_is_unsettled(
        self, queue: AbstractMessageQueue, other: AbstractMessageQueue
    ) -> None:
        await publish(queue, self.topic, *range(3))
        subscription = await queue.subscribe(self.topic)
        first = await receive_one(subscription)
        held = await receive_one(subscription)
        await first.ack()
        if self.returns_on_close:
            await held.extend(60.0)
        await subscription.close()
        await subscription.close()
        async with await other.subscribe(self.topic) as second:
            numbers = await take(second, 2)
        assert sorted([number_of(first), *numbers]) == [0, 1, 2]

    async def test_closing_a_connection_deletes_nothing(
        self, connect: Connect, other: AbstractMessageQueue
    ) -> None:
        queue = await connect()
        await publish(queue, self.topic, *range(3))
        subscription = await queue.subscribe(self.topic)
        await receive_one(subscription)
        await queue.close()
        await queue.close()
        with pytest.raises(ClosedError):
            await subscription.receive(1)
        async with await other.subscribe(self.topic) as second:
            assert sorted(await take(second, 3)) == [0, 1, 2]

    async def test_a_closed_connection_takes_no_publication(self, connect: Connect) -> None:
        queue = await connect()
        await queue.cleanup()
        with pytest.raises(ClosedError) as refused:
            await queue.publish(QueueMessage(), self.topic)
        assert not refused.value.retriable, "who publishes until it is accepted would never end"

    async def test_a_closed_connection_opens_no_subscription(self, connect: Connect) -> None:
        queue = await connect()
        await queue.cleanup()
        with pytest.raises(ClosedError):
            await queue.subscribe(self.topic)
        with pytest.raises(ClosedError):
            await queue.register_consumer(CallableMessageConsumer(handler=print), self.topic)
