"""The contract of a message queue as tests.

A backend shows that it keeps the contract of `llama_deploy.message_queues.base` by inheriting them:

```python
class TestMyQueue(MessageQueueContract):
    @pytest_asyncio.fixture
    async def connect(self) -> AsyncIterator[Connect]:
        async with my_broker(visibility_timeout=self.visibility_timeout) as broker:
            yield broker.connect
```

The tests need `pytest-asyncio`, in any of its modes. They wait for what shall happen, with a deadline, and
never for time to pass.
"""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import ClassVar

import pytest
import pytest_asyncio

from llama_deploy.errors import ClosedError, QueueFullError, UnavailableError
from llama_deploy.message_queues.base import AbstractMessageQueue, Subscription
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.testing.numbered_messages import DEADLINE, number_of, numbered, publish, receive_one, take

Connect = Callable[[], Awaitable[AbstractMessageQueue]]
"""Opens one more connection to the broker of the present test."""


@pytest.mark.asyncio
class MessageQueueContract:
    """Inherit it, override `connect`, and set the flags to what the backend is."""

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

    async def test_a_message_arrives_as_it_was_sent(self, queue: AbstractMessageQueue) -> None:
        sent = QueueMessage(
            publisher_id="me", data={"a": [1, 2.5, None, "ü\n"]}, action=ActionTypes.NEW_TASK, type="t"
        )
        await queue.publish(sent, self.topic)
        async with await queue.subscribe(self.topic) as subscription:
            delivery = await receive_one(subscription)
            assert delivery.message == sent
            assert delivery.attempt == 1
            await delivery.ack()

    async def test_the_callback_is_called_after_the_publication(self, queue: AbstractMessageQueue) -> None:
        calls: list[tuple[str, object]] = []

        async def callback(message: QueueMessage, **kwargs: object) -> None:
            calls.append((message.id_, kwargs["reason"]))

        sent = QueueMessage()
        await queue.publish(sent, self.topic, callback=callback, reason="test")
        assert calls == [(sent.id_, "test")]

    async def test_the_callback_may_be_a_plain_function(self, queue: AbstractMessageQueue) -> None:
        calls: list[str] = []

        def callback(message: QueueMessage, **_kwargs: object) -> None:
            calls.append(message.id_)

        sent = QueueMessage()
        await queue.publish(sent, self.topic, callback=callback)
        assert calls == [sent.id_]

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

    async def test_order_is_kept(self, queue: AbstractMessageQueue) -> None:
        if not self.is_ordered:
            pytest.skip("the broker keeps no order")
        await publish(queue, self.topic, *range(40))
        async with await queue.subscribe(self.topic) as subscription:
            assert await take(subscription, 40, batch=7) == list(range(40))

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
            everything = asyncio.Event()

            async def work(subscription: Subscription) -> None:
                while True:
                    delivery = await receive_one(subscription)
                    got.append(number_of(delivery))
                    await delivery.ack()
                    if len(got) >= 30:
                        everything.set()

            workers = [asyncio.create_task(work(one)), asyncio.create_task(work(two))]
            await publish(queue, self.topic, *range(30))
            async with asyncio.timeout(DEADLINE):
                await everything.wait()
            await _cancel(*workers)
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
            await self._nothing_comes(second)
            await slow.close()
            await self._nothing_comes(second)
            for delivery in deliveries:
                await delivery.ack()

    async def test_an_extended_message_stays(self, queue: AbstractMessageQueue) -> None:
        await publish(queue, self.topic, *range(1))
        async with await queue.subscribe(self.topic) as subscription:
            delivery = await receive_one(subscription)
            await delivery.extend(60.0)
            await self._nothing_comes(subscription)
            await delivery.ack()

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
            await queue.register_consumer(_Recorder(wanted=1), self.topic)

    async def test_a_nacked_message_comes_back(self, queue: AbstractMessageQueue) -> None:
        await publish(queue, self.topic, *range(1))
        async with await queue.subscribe(self.topic) as subscription:
            first = await receive_one(subscription)
            await first.nack()
            again = await receive_one(subscription)
            assert (first.attempt, again.attempt) == (1, 2)
            assert again.message == first.message
            await again.ack()

    async def test_a_returned_message_comes_before_later_ones(self, queue: AbstractMessageQueue) -> None:
        if not self.is_ordered:
            pytest.skip("the broker keeps no order")
        await publish(queue, self.topic, *range(4))
        async with await queue.subscribe(self.topic) as subscription:
            first, second = await receive_one(subscription), await receive_one(subscription)
            await second.nack()
            await first.nack()
            assert await take(subscription, 4) == [0, 1, 2, 3]

    async def test_a_nack_can_be_delayed(self, queue: AbstractMessageQueue) -> None:
        if not self.delays_nacks:
            pytest.skip("the broker delays no nacks")
        await publish(queue, self.topic, *range(2))
        loop = asyncio.get_running_loop()
        async with await queue.subscribe(self.topic) as subscription:
            first = await receive_one(subscription)
            since = loop.time()
            await first.nack(delay=0.4)
            delayed = number_of(first)
            assert await take(subscription, 2) == [1 - delayed, delayed]
            assert loop.time() - since >= 0.4

    async def test_settling_twice_is_harmless(self, queue: AbstractMessageQueue) -> None:
        await publish(queue, self.topic, *range(2))
        async with await queue.subscribe(self.topic) as subscription:
            first = await receive_one(subscription)
            await first.ack()
            await first.nack()
            await first.ack()
            await first.extend(1.0)
            assert await take(subscription, 1) == [1 - number_of(first)]
            await self._nothing_comes(subscription)

    async def test_what_is_never_acked_becomes_a_dead_letter(self, queue: AbstractMessageQueue) -> None:
        await publish(queue, self.topic, *range(1))
        async with await queue.subscribe(self.topic) as subscription:
            for attempt in range(1, self.max_deliveries + 1):
                delivery = await receive_one(subscription)
                assert delivery.attempt == attempt
                await delivery.nack()
            await queue.publish(numbered(1), self.topic)
            assert await take(subscription, 1) == [1]
        if self.dead_letter_topic is not None:
            async with await queue.subscribe(self.dead_letter_topic.format(topic=self.topic)) as dead:
                assert await take(dead, 1) == [0]

    async def test_a_full_topic_pushes_back(self, queue: AbstractMessageQueue) -> None:
        if self.max_messages_per_topic is None:
            pytest.skip("the broker's topics have no bound")
        await publish(queue, self.topic, *range(self.max_messages_per_topic))
        with pytest.raises(QueueFullError) as caught:
            await queue.publish(QueueMessage(), self.topic)
        assert caught.value.retry_after > 0
        assert caught.value.topic == self.topic
        await queue.publish(QueueMessage(), self.topic + ".other")
        async with await queue.subscribe(self.topic) as subscription:
            assert await take(subscription, 1) == [0]
            async with asyncio.timeout(DEADLINE):
                while not await self._accepts(queue):  # noqa: ASYNC110 - the ack may still be on its way
                    await asyncio.sleep(0.01)

    async def test_publications_at_the_same_time_all_arrive(self, queue: AbstractMessageQueue) -> None:
        topics = [f"{self.topic}.{number}" for number in range(3)]
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
            for number in range(90):
                message = numbered(number)
                group.create_task(queue.publish(message, topics[number % 3]))
        for remainder, topic in enumerate(topics):
            async with await queue.subscribe(topic) as subscription:
                assert sorted(await take(subscription, 30)) == list(range(remainder, 90, 3))

    async def test_a_cancelled_receive_loses_nothing(self, queue: AbstractMessageQueue) -> None:
        async with await queue.subscribe(self.topic) as subscription:
            await _cancel(asyncio.create_task(subscription.receive(5)))
            await publish(queue, self.topic, *range(3))
            assert sorted(await take(subscription, 3)) == [0, 1, 2]

    async def test_a_consumer_acks_by_returning_and_nacks_by_raising(
        self, queue: AbstractMessageQueue
    ) -> None:
        consumer = _Recorder(failures=1, wanted=3)
        start_consuming = await queue.register_consumer(consumer, self.topic, concurrency=2)
        consuming = asyncio.create_task(start_consuming())
        await publish(queue, self.topic, *range(3))
        async with asyncio.timeout(DEADLINE):
            await consumer.done.wait()
            await queue.deregister_consumer(consumer)
            await consuming
        assert sorted(consumer.processed) == [0, 1, 2]
        assert consumer.failed == 1

    async def test_slow_work_is_not_given_to_another_member(self, queue: AbstractMessageQueue) -> None:
        consumer = _Recorder(wanted=1, seconds=self.visibility_timeout * 2)
        start_consuming = await queue.register_consumer(consumer, self.topic, concurrency=4)
        consuming = asyncio.create_task(start_consuming())
        await publish(queue, self.topic, *range(1))
        async with asyncio.timeout(DEADLINE):
            await consumer.done.wait()
        await _cancel(consuming)
        assert (consumer.begun, consumer.processed) == (1, [0])

    async def test_a_cancelled_consumer_hands_back_its_message(self, queue: AbstractMessageQueue) -> None:
        consumer = _Recorder(wanted=1, seconds=3600.0)
        start_consuming = await queue.register_consumer(consumer, self.topic)
        consuming = asyncio.create_task(start_consuming())
        await publish(queue, self.topic, *range(1))
        async with asyncio.timeout(DEADLINE):
            await consumer.began.wait()
        await _cancel(consuming)
        async with await queue.subscribe(self.topic) as subscription:
            assert await take(subscription, 1) == [0]

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

    async def _nothing_comes(self, subscription: Subscription) -> None:
        """Show that nothing comes while anything unsettled would come back."""
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(subscription.receive(1), self.visibility_timeout * 1.5)

    async def _accepts(self, queue: AbstractMessageQueue) -> bool:
        try:
            await queue.publish(QueueMessage(), self.topic)
        except QueueFullError:
            return False
        return True


class _Recorder:
    """A consumer that remembers what it processed."""

    def __init__(self, *, wanted: int, failures: int = 0, seconds: float = 0.0) -> None:
        self.id_ = "recorder"
        self.processed: list[int] = []
        self.begun = 0
        self.failed = 0
        self.began = asyncio.Event()
        self.done = asyncio.Event()
        self._wanted = wanted
        self._failures = failures
        self._seconds = seconds

    async def process_message(self, message: QueueMessage) -> None:
        self.begun += 1
        self.began.set()
        await asyncio.sleep(self._seconds)
        if self.failed < self._failures:
            self.failed += 1
            raise RuntimeError("fails on purpose")
        self.processed.append(message.data["number"])
        if len(self.processed) == self._wanted:
            self.done.set()


async def _cancel(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
