"""Publishing, and the way of a message to its reader."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial

import pytest

from llama_deploy.errors import ClosedError, QueueFullError, UnavailableError
from llama_deploy.message_queues.base import AbstractMessageQueue, PublishCallback, Subscription
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.message_queue_suite.base import QueueTests
from llama_deploy.testing.numbered_messages import DEADLINE, numbered, publish, receive_one, take


class PublishingTests(QueueTests):
    """A queue takes messages and brings them."""

    async def test_a_message_arrives_as_it_was_sent(
        self, queue: AbstractMessageQueue, subscription: Subscription
    ) -> None:
        sent = QueueMessage(
            publisher_id="me", data={"a": [1, 2.5, None, "ü\n"]}, action=ActionTypes.NEW_TASK, type="t"
        )
        await queue.publish(sent, self.topic)
        delivery = await receive_one(subscription)
        assert delivery.message == sent
        assert delivery.attempt == 1
        await delivery.ack()

    async def test_a_check_passes_until_the_queue_is_closed(self, queue: AbstractMessageQueue) -> None:
        await queue.check()
        await queue.close()
        with pytest.raises(ClosedError):
            await queue.check()

    async def test_a_callback_is_called_after_the_publication(self, queue: AbstractMessageQueue) -> None:
        calls: list[tuple[str, object]] = []

        def plain(message: QueueMessage, **kwargs: object) -> None:
            calls.append((message.id_, kwargs["reason"]))

        async def coroutine(message: QueueMessage, **kwargs: object) -> None:
            plain(message, **kwargs)

        callbacks: list[PublishCallback] = [plain, coroutine]
        for number, callback in enumerate(callbacks, start=1):
            sent = QueueMessage()
            await queue.publish(sent, self.topic, callback=callback, reason=number)
            assert calls[-1] == (sent.id_, number)
            assert len(calls) == number

    async def test_a_message_waits_for_its_first_subscriber(
        self, queue: AbstractMessageQueue, other: AbstractMessageQueue
    ) -> None:
        await publish(queue, self.topic, *range(3))
        async with await other.subscribe(self.topic) as subscription:
            assert sorted(await take(subscription, 3)) == [0, 1, 2]

    async def test_a_waiting_receive_wakes_when_a_message_comes(
        self, queue: AbstractMessageQueue, other: AbstractMessageQueue
    ) -> None:
        async with await other.subscribe(self.topic) as subscription:
            waiting = asyncio.create_task(take(subscription, 1))
            await publish(queue, self.topic, *range(1))
            assert await waiting == [0]

    async def test_order_is_kept(self, queue: AbstractMessageQueue, subscription: Subscription) -> None:
        assert not queue.ordered or self.is_ordered
        if not self.is_ordered:
            pytest.skip("the broker keeps no order")
        await publish(queue, self.topic, *range(40))
        assert await take(subscription, 40, batch=7) == list(range(40))

    async def test_publications_at_the_same_time_all_arrive(self, queue: AbstractMessageQueue) -> None:
        topics = [f"{self.topic}.{number}" for number in range(3)]
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
            for number in range(90):
                message = numbered(number)
                group.create_task(queue.publish(message, topics[number % 3]))
        for remainder, topic in enumerate(topics):
            async with await queue.subscribe(topic) as subscription:
                assert sorted(await take(subscription, 30)) == list(range(remainder, 90, 3))

    async def test_a_full_topic_pushes_back(
        self, queue: AbstractMessageQueue, subscription: Subscription
    ) -> None:
        if self.max_messages_per_topic is None:
            pytest.skip("the broker's topics have no bound")
        await publish(queue, self.topic, *range(self.max_messages_per_topic))
        with pytest.raises(QueueFullError) as caught:
            await queue.publish(QueueMessage(), self.topic)
        assert caught.value.retry_after > 0
        assert caught.value.topic == self.topic
        await queue.publish(QueueMessage(), self.topic + ".other")
        assert await take(subscription, 1) == [0]
        # The ack may still be on its way.
        await eventually(partial(self._accepts, queue), seconds=DEADLINE)

    async def test_its_settings_lead_to_the_same_broker(self, queue: AbstractMessageQueue) -> None:
        config = queue.as_config()
        public = config.public_settings()
        assert public["type"]
        assert not public.keys() & config.credential_fields
        async with AsyncExitStack() as stack:
            try:
                second = await stack.enter_async_context(await config.connect())
            except UnavailableError:
                pytest.skip("the broker serves this process only")
            await publish(queue, self.topic, *range(1))
            subscription = await stack.enter_async_context(await second.subscribe(self.topic))
            assert await take(subscription, 1) == [0]

    async def _accepts(self, queue: AbstractMessageQueue) -> bool:
        try:
            await queue.publish(QueueMessage(), self.topic)
        except QueueFullError:
            return False
        return True
