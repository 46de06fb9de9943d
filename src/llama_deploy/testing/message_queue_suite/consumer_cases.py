"""Consumers."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import asyncio

from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.message_queue_suite.base import QueueTests, cancel
from llama_deploy.testing.numbered_messages import DEADLINE, publish, take


class ConsumerTests(QueueTests):
    """A queue feeds consumers."""

    async def test_a_consumer_acks_by_returning_and_nacks_by_raising(
        self, queue: AbstractMessageQueue
    ) -> None:
        consumer = _Recorder(failures=1)
        start_consuming = await queue.register_consumer(consumer, self.topic, concurrency=2)
        consuming = asyncio.create_task(start_consuming())
        await publish(queue, self.topic, *range(3))
        await eventually(lambda: sorted(consumer.processed) == [0, 1, 2], seconds=DEADLINE)
        await queue.deregister_consumer(consumer)
        await asyncio.wait_for(consuming, DEADLINE)
        assert consumer.begun > 3

    async def test_slow_work_is_not_given_to_another_member(self, queue: AbstractMessageQueue) -> None:
        consumer = _Recorder(seconds=self.visibility_timeout * 2)
        start_consuming = await queue.register_consumer(consumer, self.topic, concurrency=4)
        consuming = asyncio.create_task(start_consuming())
        await publish(queue, self.topic, *range(1))
        await eventually(lambda: consumer.processed, seconds=DEADLINE)
        await cancel(consuming)
        assert (consumer.begun, consumer.processed) == (1, [0])

    async def test_a_cancelled_consumer_hands_back_its_message(self, queue: AbstractMessageQueue) -> None:
        consumer = _Recorder(seconds=3600.0)
        start_consuming = await queue.register_consumer(consumer, self.topic)
        consuming = asyncio.create_task(start_consuming())
        await publish(queue, self.topic, *range(1))
        await eventually(lambda: consumer.begun, seconds=DEADLINE)
        await cancel(consuming)
        async with await queue.subscribe(self.topic) as subscription:
            assert await take(subscription, 1) == [0]


class _Recorder:
    """A consumer that remembers what it processed."""

    def __init__(self, *, failures: int = 0, seconds: float = 0.0) -> None:
        self.id_ = "recorder"
        self.processed: list[int] = []
        self.begun = 0
        self._failures = failures
        self._seconds = seconds

    async def process_message(self, message: QueueMessage) -> None:
        self.begun += 1
        fails = self.begun <= self._failures
        await asyncio.sleep(self._seconds)
        if fails:
            raise RuntimeError("fails on purpose")
        self.processed.append(message.data["number"])
