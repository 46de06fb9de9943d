"""What only the queue over Kafka does."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupAuthorizationFailedError

from llama_deploy.errors import ClosedError, ConfigError, InvalidRequestError, PayloadTooLargeError
from llama_deploy.message_queues.base import AbstractMessageQueue, Delivery, Subscription
from llama_deploy.message_queues.kafka.connection import KafkaConnection
from llama_deploy.message_queues.kafka.subscription import KafkaSubscription
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually
from tests.integration.numbered import TOPIC, number_of, publish, receive, take
from tests.integration.on_kafka import settings
from tests.servers.kafka import KafkaServer

HOLDER = """
import asyncio, sys
from llama_deploy.message_queues.kafka import KafkaMessageQueueConfig

async def main():
    config = KafkaMessageQueueConfig(url=sys.argv[1], partitions=1, session_timeout=3.0, poll_seconds=0.1)
    async with await config.connect() as queue, await queue.subscribe(sys.argv[2]) as subscription:
        deliveries = []
        while len(deliveries) < 5:
            deliveries += await subscription.receive(5)
        for delivery in deliveries[:2]:
            await delivery.ack()
        await asyncio.sleep(1.0)  # for the commit
        print("holds", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KafkaServer]:
    with KafkaServer(tmp_path) as server:
        yield server


@pytest.fixture
async def queue(server: KafkaServer) -> AsyncIterator[AbstractMessageQueue]:
    async with await settings(server.url).connect() as queue:
        yield queue


async def hold(subscription: Subscription, count: int) -> dict[int, Delivery]:
    """Receive `count` messages; return them by number."""
    held: dict[int, Delivery] = {}
    while len(held) < count:
        held |= {number_of(each): each for each in await receive(subscription, count - len(held))}
    return held


def shares(subscription: Subscription) -> bool:
    """Whether others have partitions too."""
    assert isinstance(subscription, KafkaSubscription)
    return subscription.shares


async def is_quiet(subscription: Subscription, seconds: float = 1.0) -> bool:
    """Whether nothing comes for a while."""
    try:
        await asyncio.wait_for(subscription.receive(1), seconds)
    except TimeoutError:
        return True
    return False


class TestRebalance:
    async def test_what_is_in_hand_stays_there_when_the_partitions_move(
        self, server: KafkaServer, queue: AbstractMessageQueue
    ) -> None:
        await publish(queue, *range(12))
        async with await settings(server.url).connect() as other, await queue.subscribe(TOPIC) as first:
            held = await hold(first, 12)
            async with await other.subscribe(TOPIC) as second:
                receiving = asyncio.create_task(second.receive(1))
                await eventually(lambda: shares(second))
                for number in range(10):
                    await held[number].ack()
                await held[10].extend(60.0)
                await held[11].nack()
                (again,) = await asyncio.wait_for(receiving, 10)
                assert (number_of(again), again.attempt) == (11, 2)
                await again.ack()
                assert await is_quiet(second)
                await held[10].nack()
                (again,) = await receive(second)
                assert (number_of(again), again.attempt) == (10, 2)
                await again.ack()
        # Nothing is left that another would get.
        async with await queue.subscribe(TOPIC) as third:
            assert await is_quiet(third, 8.0)

    async def test_what_is_in_hand_comes_back_in_time_when_the_partitions_move(
        self, server: KafkaServer
    ) -> None:
        config = settings(server.url, visibility_timeout=5.0)
        async with (
            await config.connect() as queue,
            await config.connect() as other,
            await queue.subscribe(TOPIC) as first,
        ):
            await publish(queue, *range(8))
            held = await hold(first, 8)
            async with await other.subscribe(TOPIC) as second:
                await held[0].ack()
                again = await hold(second, 7)
                assert {each.attempt for each in again.values()} == {2}
                assert sorted(again) == list(range(1, 8))

    async def test_a_member_that_asks_for_nothing_leaves_its_messages_to_others(
        self, server: KafkaServer, queue: AbstractMessageQueue
    ) -> None:
        async with (
            await settings(server.url).connect() as other,
            await queue.subscribe(TOPIC) as busy,
            await other.subscribe(TOPIC) as free,
        ):
            await publish(queue, 0)
            await eventually(lambda: shares(busy) and shares(free))
            await publish(queue, *range(1, 20))
            assert sorted(await take(free, 20)) == list(range(20))

    async def test_a_killed_member_loses_nothing(self, server: KafkaServer) -> None:
        async with await settings(server.url, partitions=1).connect() as queue:
            await publish(queue, *range(5))
            command = [sys.executable, "-c", HOLDER, server.url, TOPIC]
            member = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            assert member.stdout is not None
            assert await member.stdout.readline() == b"holds\n"
            member.kill()
            await member.wait()
            async with await queue.subscribe(TOPIC) as subscription:
                assert await take(subscription, 3) == [2, 3, 4]


class TestGroups:
    async def test_what_comes_back_to_one_group_does_not_come_to_another(
        self, queue: AbstractMessageQueue
    ) -> None:
        async with (
            await queue.subscribe(TOPIC, group="a") as a,
            await queue.subscribe(TOPIC, group="b") as b,
        ):
            await publish(queue, 0)
            ((delivery,), (other,)) = await asyncio.gather(receive(a), receive(b))
            await delivery.nack()
            await other.ack()
            (again,) = await receive(a)
            assert again.attempt == 2
            await again.ack()
            assert await is_quiet(b)

    async def test_a_group_gets_what_came_while_it_was_away(self, queue: AbstractMessageQueue) -> None:
        await publish(queue, 0)
        await (await queue.subscribe(TOPIC, group="second")).close()
        await publish(queue, 1)
        async with await queue.subscribe(TOPIC, group="second") as subscription:
            assert await take(subscription, 1) == [1]
            assert await is_quiet(subscription)


class TestTopics:
    async def test_a_topic_that_expires_has_one_partition(
        self, server: KafkaServer, queue: AbstractMessageQueue
    ) -> None:
        await (await queue.subscribe("instance", expires_after=60.0)).close()
        await publish(queue, 0)
        admin = AIOKafkaAdminClient(bootstrap_servers=server.url.partition("://")[2])
        await admin.start()
        try:
            found: list[dict[str, Any]] = await admin.describe_topics([TOPIC, "instance"])
        finally:
            await admin.close()
        assert {each["topic"]: len(each["partitions"]) for each in found} == {TOPIC: 4, "instance": 1}

    async def test_what_cannot_be_understood_becomes_a_dead_letter(
        self, server: KafkaServer, queue: AbstractMessageQueue, caplog: pytest.LogCaptureFixture
    ) -> None:
        connection = KafkaConnection(settings(server.url))
        try:
            await connection.send(TOPIC, b"{}}")
        finally:
            await connection.close()
        await publish(queue, 1)
        async with await queue.subscribe(TOPIC) as subscription:
            assert await take(subscription, 1) == [1]
            await eventually(lambda: "are dead letters now" in caplog.text)
        # Who reads the dead letters gets those that are messages.
        await publish(queue, 2, topic=f"{TOPIC}.dead_letters")
        async with await queue.subscribe(f"{TOPIC}.dead_letters") as dead:
            assert await take(dead, 1) == [2]
            await eventually(lambda: caplog.text.count("cannot be decoded") == 2)
            assert await is_quiet(dead)

    async def test_a_name_that_kafka_does_not_take_is_refused(self, queue: AbstractMessageQueue) -> None:
        for name in ("", "x" * 240, "é", "a b", "a:b", "."):
            with pytest.raises(InvalidRequestError):
                await publish(queue, 1, topic=name)
            with pytest.raises(InvalidRequestError):
                await queue.subscribe(name)
            with pytest.raises(InvalidRequestError):
                await queue.subscribe(TOPIC, group=name)

    async def test_a_message_may_be_large_but_not_too_large(self, server: KafkaServer) -> None:
        async with await settings(server.url, max_message_bytes=3_000_000).connect() as queue:
            await queue.publish(QueueMessage(data={"number": 1, "text": "x" * 2_000_000}), TOPIC)
            with pytest.raises(PayloadTooLargeError) as caught:
                await queue.publish(QueueMessage(data={"text": "x" * 3_000_000}), TOPIC)
            assert caught.value.limit_bytes == 3_000_000
            async with await queue.subscribe(TOPIC) as subscription:
                assert await take(subscription, 1) == [1]

    async def test_closing_wakes_who_waits(self, queue: AbstractMessageQueue) -> None:
        subscription = await queue.subscribe(TOPIC)
        receiving = asyncio.create_task(subscription.receive(1))
        await asyncio.sleep(0)
        await queue.close()
        with pytest.raises(ClosedError):
            await receiving


async def test_a_reader_outlasts_a_refused_permission(
    server: KafkaServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server of the tests has no permissions, so the driver says what it would."""
    caplog.set_level(logging.INFO)
    topic, refused = "permission", False
    getmany = AIOKafkaConsumer.getmany

    async def refusing(consumer: AIOKafkaConsumer, **options: Any) -> Any:
        if refused:
            raise GroupAuthorizationFailedError(topic)
        return await getmany(consumer, **options)

    monkeypatch.setattr(AIOKafkaConsumer, "getmany", refusing)
    async with await settings(server.url).connect() as queue, await queue.subscribe(topic) as subscription:
        await publish(queue, 1, topic=topic)
        assert await take(subscription, 1) == [1]
        refused = True
        receiving = asyncio.create_task(receive(subscription))
        await eventually(lambda: "denies access that it has granted before" in caplog.text)
        await publish(queue, 2, topic=topic)
        assert not receiving.done()
        refused = False
        (delivery,) = await receiving
        assert number_of(delivery) == 2
        await delivery.ack()
        assert "grants access again" in caplog.text
    assert caplog.text.count("denies access that it has granted before") == 1


async def test_who_may_not_read_learns_it_at_once(
    server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refusing(*_: Any, **__: Any) -> Any:
        raise GroupAuthorizationFailedError(TOPIC)

    monkeypatch.setattr(AIOKafkaConsumer, "getmany", refusing)
    async with await settings(server.url).connect() as queue, await queue.subscribe(TOPIC) as subscription:
        with pytest.raises(ConfigError, match="refuses"):
            await receive(subscription)


async def test_credentials_are_never_shown(server: KafkaServer, caplog: pytest.LogCaptureFixture) -> None:
    config = settings(server.url.replace("//", "//me:hush%2Fhush@"), retry_seconds=0.5, timeout=0.5)
    with caplog.at_level(logging.DEBUG), pytest.raises(Exception, match="Kafka at") as error:
        await config.connect()  # the server knows nobody
    shown = [repr(config), str(config), str(config.public_settings()), config.model_dump_json(), caplog.text]
    assert "hush" not in " ".join((*shown, str(error.value)))
