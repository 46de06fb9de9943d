"""What only the queue over RabbitMQ does: its settings, its limits, and how it keeps to its room."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity
from pydantic import ValidationError

from llama_deploy.errors import (
    ClosedError,
    ConfigError,
    InvalidRequestError,
    PayloadTooLargeError,
    QueueFullError,
    UnavailableError,
)
from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.message_queues.rabbitmq import RabbitMQMessageQueueConfig
from llama_deploy.message_queues.rabbitmq import publishing as publisher
from llama_deploy.message_queues.rabbitmq.subscription import RabbitMQSubscription
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import free_port
from llama_deploy.testing.tcp_proxy import TcpProxy
from tests.integration.numbered import TOPIC, number_of, publish, take
from tests.servers.rabbitmq import RabbitMQServer

SECRET = "hush/hush@home"  # noqa: S105 - of a test
QUOTED = "hush%2Fhush%40home"
MOST_BYTES = 200_000
"""What the broker takes of one message."""
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    with RabbitMQServer(tmp_path_factory.mktemp("rabbitmq"), f"max_message_size = {MOST_BYTES}") as server:
        yield server


@pytest.fixture
def config(server: RabbitMQServer) -> RabbitMQMessageQueueConfig:
    return RabbitMQMessageQueueConfig(url=server.url, exchange_name=f"test{next(_NUMBERS)}")


@pytest.fixture
async def queue(config: RabbitMQMessageQueueConfig) -> AsyncIterator[AbstractMessageQueue]:
    async with await config.connect() as queue:
        yield queue


@asynccontextmanager
async def broker(server: RabbitMQServer) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """Speak with the broker without our queue."""
    connection = await aio_pika.connect(server.url)
    async with connection, connection.channel() as channel:
        yield channel


def changed(config: RabbitMQMessageQueueConfig, **fields: Any) -> RabbitMQMessageQueueConfig:
    return RabbitMQMessageQueueConfig(**{**config.model_dump(), **fields})


async def waiting(server: RabbitMQServer, config: RabbitMQMessageQueueConfig, topic: str = TOPIC) -> int:
    """Return how many messages of a topic no member has."""
    async with broker(server) as channel:
        queue = await channel.declare_queue(f"{config.exchange_name}:{topic}", passive=True)
        return queue.declaration_result.message_count or 0


async def exists(server: RabbitMQServer, config: RabbitMQMessageQueueConfig) -> bool:
    try:
        await waiting(server, config)
    except ChannelNotFoundEntity:
        return False
    return True


class TestSettings:
    def test_the_defaults_are_those_of_rabbitmq(self) -> None:
        config = RabbitMQMessageQueueConfig()
        assert config.driver_url("me") == "amqp://guest:guest@localhost:5672/?heartbeat=10&name=me"
        assert config.public_settings()["url"] == "amqp://localhost:5672/"

    def test_fields_go_before_the_url(self) -> None:
        config = RabbitMQMessageQueueConfig(
            url="amqp://me:mine@there:1/that?cafile=x",
            username="you",
            password=SECRET,
            host="::1",
            port=2,
            vhost="a/b",
            secure=True,
        )
        expected = f"amqps://you:{QUOTED}@[::1]:2/a%2Fb?cafile=x&heartbeat=10&name=n"
        assert config.driver_url("n") == expected

    def test_the_url_alone_says_all(self) -> None:
        config = RabbitMQMessageQueueConfig(url=f"amqps://me:{QUOTED}@there/that")
        assert config.driver_url("n") == f"amqps://me:{QUOTED}@there:5671/that?heartbeat=10&name=n"

    def test_the_environment_sets_fields(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RABBITMQ_URL", f"amqp://me:{QUOTED}@there/")
        monkeypatch.setenv("RABBITMQ_EXCHANGE_NAME", "mine")
        config = RabbitMQMessageQueueConfig()
        assert (config.address, config.username, config.exchange_name) == ("amqp://there:5672/", "me", "mine")

    def test_credentials_are_never_shown(self) -> None:
        for config in (
            RabbitMQMessageQueueConfig(url=f"amqp://somebody:{QUOTED}@there/"),
            RabbitMQMessageQueueConfig(username="somebody", password=SECRET),
        ):
            shown = f"{config!r} {config} {json.dumps(config.public_settings())}"
            for secret in ("somebody", SECRET, QUOTED):
                assert secret not in shown
            assert SECRET not in str(config.model_dump())

    @pytest.mark.parametrize("url", ["http://a:hush@b/", "amqp://a:hush@:5/", "amqp://a:b/hush", "hush"])
    def test_an_url_of_another_form_is_refused_without_showing_it(self, url: str) -> None:
        with pytest.raises(ValidationError) as caught:
            RabbitMQMessageQueueConfig(url=url)
        assert "hush" not in str(caught.value)

    def test_public_settings_make_the_same_queues(self) -> None:
        config = RabbitMQMessageQueueConfig(host="there", vhost="a/b", max_deliveries=3)
        again = RabbitMQMessageQueueConfig(**config.public_settings())
        assert again.address == config.address
        assert again.max_deliveries == 3


class TestConnecting:
    async def test_wrong_credentials_are_named_and_not_shown(
        self, config: RabbitMQMessageQueueConfig, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError, match="refuses") as caught:
            await changed(config, password=SECRET).connect()
        for text in (str(caught.value), caplog.text):
            assert SECRET not in text
            assert QUOTED not in text

    async def test_a_vhost_that_is_not_there_is_named(self, config: RabbitMQMessageQueueConfig) -> None:
        with pytest.raises(UnavailableError, match=r"vhost of amqp://.*/nowhere"):
            await changed(config, vhost="nowhere", retry_seconds=3.0).connect()

    async def test_an_exchange_of_another_kind_is_named(
        self, server: RabbitMQServer, config: RabbitMQMessageQueueConfig
    ) -> None:
        async with broker(server) as channel:
            await channel.declare_exchange(config.exchange_name, aio_pika.ExchangeType.FANOUT)
            with pytest.raises(ConfigError, match="exchange_name"):
                await config.connect()

    async def test_no_broker_is_unavailable(self) -> None:
        config = RabbitMQMessageQueueConfig(url=f"amqp://127.0.0.1:{free_port()}/", retry_seconds=0.2)
        with pytest.raises(UnavailableError, match="does not answer") as caught:
            await config.connect()
        assert caught.value.retriable

    async def test_a_name_that_rabbitmq_does_not_take_is_refused(self, queue: AbstractMessageQueue) -> None:
        for topic in ("", "x" * 240, "é", "a?b"):
            with pytest.raises(InvalidRequestError):
                await publish(queue, 1, topic=topic)
            with pytest.raises(InvalidRequestError):
                await queue.subscribe(topic)

    async def test_closing_wakes_who_waits(self, queue: AbstractMessageQueue) -> None:
        subscription = await queue.subscribe(TOPIC)
        receiving = asyncio.create_task(subscription.receive(1))
        await asyncio.sleep(0)
        await queue.close()
        with pytest.raises(ClosedError):
            await receiving


class TestLargeMessages:
    async def test_one_above_the_brokers_limit_is_refused_and_harms_no_other(
        self, queue: AbstractMessageQueue, caplog: pytest.LogCaptureFixture
    ) -> None:
        await self.refused_beside_others(queue)
        assert "the message queue is lost" not in caplog.text

    async def test_nothing_is_lost_where_a_broker_takes_less_than_is_usual(
        self, queue: AbstractMessageQueue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publisher, "_SAFE_BYTES", 10 * MOST_BYTES)
        await self.refused_beside_others(queue)

    async def refused_beside_others(self, queue: AbstractMessageQueue) -> None:
        await publish(queue, 0)  # creates the topic, so that all others travel together
        large = [queue.publish(sized(size), TOPIC) for size in (MOST_BYTES + 1, 2 * MOST_BYTES)]
        refusals = asyncio.gather(*large, return_exceptions=True)
        await asyncio.gather(refusals, *(publish(queue, number) for number in range(1, 100)))
        for refusal in await refusals:
            assert isinstance(refusal, PayloadTooLargeError), refusal
            assert refusal.limit_bytes == MOST_BYTES
        async with await queue.subscribe(TOPIC) as subscription:
            missing = set(range(100))
            while missing:  # what was under way may come twice
                missing -= set(await take(subscription, 1))

    async def test_the_broker_is_asked_once_over_a_connection(
        self, server: RabbitMQServer, config: RabbitMQMessageQueueConfig, proxy: TcpProxy
    ) -> None:
        port = await proxy.start(server.port)
        async with await changed(config, port=port, retry_seconds=2.0).connect() as queue:
            await queue.publish(sized(MOST_BYTES), TOPIC)
            with pytest.raises(PayloadTooLargeError):
                await queue.publish(sized(MOST_BYTES + 1), TOPIC)
            proxy.hold()
            with pytest.raises(PayloadTooLargeError) as caught:
                await queue.publish(sized(MOST_BYTES + 1), TOPIC)
            assert caught.value.limit_bytes == MOST_BYTES
            # Behind another connection there may be a broker with other settings.
            proxy.resume()
            proxy.cut()
            await publish(queue, 1)
            proxy.hold()
            with pytest.raises(UnavailableError):
                await queue.publish(sized(MOST_BYTES + 1), TOPIC)
            proxy.resume()


def sized(size: int) -> QueueMessage:
    """Return a message that is so many bytes on the wire."""
    empty = QueueMessage(data={"text": ""})
    empty.stats.publish_time = "2026-01-01T00:00:00.000000+00:00"  # as long as the one that the queue sets
    return empty.model_copy(update={"data": {"text": "x" * (size - len(empty.encode()))}})


class TestTopics:
    async def test_a_full_topic_pushes_back_until_it_has_shrunk(
        self, config: RabbitMQMessageQueueConfig
    ) -> None:
        async with await changed(config, max_messages_per_topic=20).connect() as queue:
            with pytest.raises(QueueFullError) as caught:
                await publish(queue, *range(25))
            assert caught.value.topic == TOPIC
            await publish(queue, 0, topic="other")
            async with await queue.subscribe(TOPIC) as subscription:
                assert await take(subscription, 15) == list(range(15))

                async def takes_more() -> bool:
                    try:
                        await publish(queue, 99)
                    except QueueFullError:
                        return False
                    return True

                await eventually(takes_more)

    async def test_a_deleted_queue_is_created_anew(
        self, server: RabbitMQServer, config: RabbitMQMessageQueueConfig, queue: AbstractMessageQueue
    ) -> None:
        async with await queue.subscribe(TOPIC) as subscription:
            await publish(queue, 1)
            assert await take(subscription, 1) == [1]
            receiving = asyncio.create_task(take(subscription, 1))
            async with broker(server) as channel:
                await channel.queue_delete(f"{config.exchange_name}:{TOPIC}")
            # Its reader hears of it and makes it anew.
            await eventually(lambda: exists(server, config))
            await publish(queue, 2)
            assert await receiving == [2]

    async def test_a_publication_to_a_deleted_queue_is_not_lost(
        self, server: RabbitMQServer, config: RabbitMQMessageQueueConfig, queue: AbstractMessageQueue
    ) -> None:
        await publish(queue, 1)
        async with broker(server) as channel:
            await channel.queue_delete(f"{config.exchange_name}:{TOPIC}")
        await publish(queue, 2)
        assert await waiting(server, config) == 1

    async def test_other_limits_are_no_obstacle(
        self, config: RabbitMQMessageQueueConfig, queue: AbstractMessageQueue
    ) -> None:
        await publish(queue, 1)
        async with (
            await changed(config, max_deliveries=2, max_dead_letters=3).connect() as other,
            await other.subscribe(TOPIC, expires_after=60.0) as subscription,
        ):
            await publish(other, 2)
            assert await take(subscription, 2) == [1, 2]

    async def test_a_topic_that_nobody_reads_expires(
        self, server: RabbitMQServer, config: RabbitMQMessageQueueConfig, queue: AbstractMessageQueue
    ) -> None:
        await (await queue.subscribe(TOPIC, expires_after=0.2)).close()

        async def is_gone() -> bool:
            # To look at it is to use it, so there must be time in between.
            await asyncio.sleep(0.4)
            return not await exists(server, config)

        await eventually(is_gone)
        await publish(queue, 1)
        async with await queue.subscribe(TOPIC) as subscription:
            assert await take(subscription, 1) == [1]

    async def test_what_cannot_be_understood_becomes_a_dead_letter(
        self, server: RabbitMQServer, config: RabbitMQMessageQueueConfig, queue: AbstractMessageQueue
    ) -> None:
        async with await queue.subscribe(TOPIC) as subscription:
            async with broker(server) as channel:
                exchange = await channel.get_exchange(config.exchange_name)
                await exchange.publish(aio_pika.Message(b"{}}"), TOPIC)
            await publish(queue, 1)
            assert await take(subscription, 1) == [1]
        await eventually(lambda: _is(waiting(server, config, f"{TOPIC}.dead_letters"), 1))


async def _is(found: Any, expected: int) -> bool:
    return bool(await found == expected)


class TestRoom:
    async def test_a_member_that_asks_no_more_gets_no_more(self, queue: AbstractMessageQueue) -> None:
        await publish(queue, *range(10))
        async with await queue.subscribe(TOPIC) as busy, await queue.subscribe(TOPIC) as free:
            first = await take(busy, 2)
            rest = await take(free, 8)
            assert sorted(first + rest) == list(range(10))

    async def test_a_member_whose_acknowledged_work_goes_on_leaves_the_rest_to_others(
        self, queue: AbstractMessageQueue
    ) -> None:
        """As a service with two slots does: it acknowledges at the claim, and asks for what room is left."""
        async with await queue.subscribe(TOPIC) as busy, await queue.subscribe(TOPIC) as free:
            receiving = asyncio.create_task(busy.receive(2))
            await publish(queue, 0)
            (delivery,) = await receiving
            await delivery.ack()
            receiving = asyncio.create_task(busy.receive(1))
            # The acknowledgement has left: from here on the broker could send two.
            assert isinstance(busy, RabbitMQSubscription)
            await eventually(lambda: not busy.unsettled)
            await publish(queue, *range(1, 10))
            async with asyncio.timeout(10):
                assert len(await receiving) == 1
            assert len(await take(free, 8)) == 8

    async def test_who_stops_waiting_gets_nothing(
        self, server: RabbitMQServer, config: RabbitMQMessageQueueConfig, queue: AbstractMessageQueue
    ) -> None:
        async def consumers() -> int:
            async with broker(server) as channel:
                found = await channel.declare_queue(f"{config.exchange_name}:{TOPIC}", passive=True)
                return found.declaration_result.consumer_count or 0

        async with await queue.subscribe(TOPIC) as idle, await queue.subscribe(TOPIC) as other:
            receiving = asyncio.create_task(idle.receive(5))
            await eventually(lambda: _is(consumers(), 1))
            receiving.cancel()
            await eventually(lambda: _is(consumers(), 0))
            await publish(queue, 1, 2, 3)
            assert await take(other, 3) == [1, 2, 3]

    async def test_unsettled_messages_are_no_obstacle_to_more(self, queue: AbstractMessageQueue) -> None:
        await publish(queue, *range(20))
        async with await queue.subscribe(TOPIC) as subscription, asyncio.timeout(10):
            held = [(await subscription.receive(1))[0] for _ in range(3)]
            while len(deliveries := await subscription.receive(16)) == 1:
                held += deliveries
            found = [number_of(delivery) for delivery in (*held, *deliveries)]
            assert found == list(range(len(found)))

    async def test_room_grows_and_shrinks(self, queue: AbstractMessageQueue) -> None:
        await publish(queue, *range(60))
        async with await queue.subscribe(TOPIC) as subscription:
            found: list[int] = []
            for most in itertools.cycle([1, 16, 2, 7]):
                async with asyncio.timeout(10):
                    deliveries = await subscription.receive(most)
                assert 1 <= len(deliveries) <= most
                found += [number_of(delivery) for delivery in deliveries]
                for delivery in deliveries:
                    await delivery.ack()
                if len(found) == 60:
                    break
            assert found == list(range(60))

    async def test_acknowledgements_reach_the_broker_without_another_receive(
        self, server: RabbitMQServer, config: RabbitMQMessageQueueConfig, queue: AbstractMessageQueue
    ) -> None:
        await publish(queue, *range(3))
        subscription = await queue.subscribe(TOPIC)
        await take(subscription, 3)
        # A consumer that is closed gives back what the broker does not know to be acknowledged.
        await subscription.close()
        assert await waiting(server, config) == 0

    async def test_work_longer_than_the_brokers_patience_goes_back(
        self, config: RabbitMQMessageQueueConfig
    ) -> None:
        async with await changed(config, ack_timeout=0.5).connect() as queue:
            await publish(queue, 1)
            async with await queue.subscribe(TOPIC) as subscription:
                (held,) = await subscription.receive(1)
                await held.extend(3600.0)
                async with asyncio.timeout(10):
                    (again,) = await subscription.receive(1)
                assert again.attempt == 2
                await held.ack()
                await again.nack(delay=3600.0)
                async with asyncio.timeout(10):
                    (last,) = await subscription.receive(1)
                assert last.attempt == 3
                await last.ack()
