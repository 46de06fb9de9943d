"""Deliveries: who gets a message, and what becomes of it."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import asyncio

import pytest

from llama_deploy.message_queues.base import AbstractMessageQueue, Subscription
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.message_queue_suite.base import QueueTests, cancel
from llama_deploy.testing.numbered_messages import DEADLINE, number_of, numbered, publish, receive_one, take


class DeliveryTests(QueueTests):
    """A queue shares messages, and brings back what is not settled."""

    async def test_a_batch_is_no_larger_than_asked_for(self, queue: AbstractMessageQueue) -> None:
        await publish(queue, self.topic, *range(5))
        async with await queue.subscribe(self.topic) as subscription:
            async with asyncio.timeout(DEADLINE):
                deliveries = await subscription.receive(2)
            assert 1 <= len(deliveries) <= 2
            for delivery in deliveries:
                await delivery.extend(60.0)
            # What one member has no capacity for is there for another.
            async with await queue.subscribe(self.topic) as second:
                rest = await take(second, 5 - len(deliveries))
            for delivery in deliveries:
                await delivery.ack()
            assert sorted([*rest, *(number_of(each) for each in deliveries)]) == [0, 1, 2, 3, 4]

    async def test_members_of_a_group_share_the_messages(
        self, queue: AbstractMessageQueue, other: AbstractMessageQueue
    ) -> None:
        async with await queue.subscribe(self.topic) as one, await other.subscribe(self.topic) as two:
            got: list[int] = []

            async def work(subscription: Subscription) -> None:
                while True:
                    got.extend(await take(subscription, 1))

            workers = [asyncio.create_task(work(one)), asyncio.create_task(work(two))]
            await publish(queue, self.topic, *range(30))
            await eventually(lambda: len(got) >= 30, seconds=DEADLINE)
            await cancel(*workers)
            assert sorted(got) == list(range(30))

    async def test_each_group_gets_each_message(self, queue: AbstractMessageQueue) -> None:
        if not self.has_groups:
            pytest.skip("the broker has no groups")
        async with (
            await queue.subscribe(self.topic, group="a") as a,
            await queue.subscribe(self.topic, group="b") as b,
        ):
            await publish(queue, self.topic, *range(3))
            assert sorted(await take(a, 3)) == [0, 1, 2]
            assert sorted(await take(b, 3)) == [0, 1, 2]

    async def test_a_cancelled_receive_loses_nothing(
        self, queue: AbstractMessageQueue, subscription: Subscription
    ) -> None:
        await cancel(asyncio.create_task(subscription.receive(5)))
        await publish(queue, self.topic, *range(3))
        assert sorted(await take(subscription, 3)) == [0, 1, 2]

    async def test_an_unsettled_message_comes_back_after_its_visibility_timeout(
        self, queue: AbstractMessageQueue, other: AbstractMessageQueue
    ) -> None:
        await publish(queue, self.topic, *range(1))
        async with await queue.subscribe(self.topic) as silent, await other.subscribe(self.topic) as second:
            await receive_one(silent)
            delivery = await receive_one(second)
            assert delivery.attempt == 2
            await delivery.ack()

    async def test_who_was_too_slow_takes_nothing_from_the_next_member(
        self, queue: AbstractMessageQueue, other: AbstractMessageQueue
    ) -> None:
        await publish(queue, self.topic, *range(3))
        slow = await queue.subscribe(self.topic)
        late = [await receive_one(slow) for _ in range(3)]
        async with await other.subscribe(self.topic) as second:
            deliveries = []
            for _ in late:
                deliveries.append(await receive_one(second))
                await deliveries[-1].extend(60.0)
            await late[0].extend(0.0)
            await late[1].nack()
            await self.nothing_comes(second)
            await slow.close()
            await self.nothing_comes(second)
            for delivery in deliveries:
                await delivery.ack()

    async def test_an_extended_message_stays(
        self, queue: AbstractMessageQueue, subscription: Subscription
    ) -> None:
        await publish(queue, self.topic, *range(1))
        delivery = await receive_one(subscription)
        await delivery.extend(60.0)
        await self.nothing_comes(subscription)
        await delivery.ack()

    async def test_a_nacked_message_comes_back(
        self, queue: AbstractMessageQueue, subscription: Subscription
    ) -> None:
        await publish(queue, self.topic, *range(1))
        first = await receive_one(subscription)
        await first.nack()
        again = await receive_one(subscription)
        assert (first.attempt, again.attempt) == (1, 2)
        assert again.message == first.message
        await again.ack()

    async def test_a_returned_message_comes_before_later_ones(
        self, queue: AbstractMessageQueue, subscription: Subscription
    ) -> None:
        if not self.is_ordered:
            pytest.skip("the broker keeps no order")
        await publish(queue, self.topic, *range(4))
        first, second = await receive_one(subscription), await receive_one(subscription)
        await second.nack()
        await first.nack()
        assert await take(subscription, 4) == [0, 1, 2, 3]

    async def test_a_nack_can_be_delayed(
        self, queue: AbstractMessageQueue, subscription: Subscription
    ) -> None:
        if not self.delays_nacks:
            pytest.skip("the broker delays no nacks")
        await publish(queue, self.topic, *range(2))
        loop = asyncio.get_running_loop()
        first = await receive_one(subscription)
        since = loop.time()
        await first.nack(delay=0.4)
        delayed = number_of(first)
        assert await take(subscription, 2) == [1 - delayed, delayed]
        assert loop.time() - since >= 0.4

    async def test_settling_twice_is_harmless(
        self, queue: AbstractMessageQueue, subscription: Subscription
    ) -> None:
        await publish(queue, self.topic, *range(2))
        first = await receive_one(subscription)
        await first.ack()
        await first.nack()
        await first.ack()
        await first.extend(1.0)
        assert await take(subscription, 1) == [1 - number_of(first)]
        await self.nothing_comes(subscription)

    async def test_what_is_never_acked_becomes_a_dead_letter(
        self, queue: AbstractMessageQueue, subscription: Subscription
    ) -> None:
        await publish(queue, self.topic, *range(1))
        for attempt in range(1, self.max_deliveries + 1):
            delivery = await receive_one(subscription)
            assert delivery.attempt == attempt
            await delivery.nack()
        await queue.publish(numbered(1), self.topic)
        assert await take(subscription, 1) == [1]
        if self.dead_letter_topic is not None:
            async with await queue.subscribe(self.dead_letter_topic.format(topic=self.topic)) as dead:
                assert await take(dead, 1) == [0]
