"""What only the queue on Redis does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from llama_deploy.errors import ClosedError, ConfigError, QueueFullError
from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.message_queues.redis import subscription as redis_subscription
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually
from tests.integration.numbered import TOPIC, number_of, numbered, receive
from tests.integration.on_redis import settings
from tests.servers.redis import DURABLE, RedisServer

STREAM = f"llama_deploy:topic:{TOPIC}"
BELL = f"llama_deploy:bell:default:{TOPIC}"
SECRET = "hush/hush"  # noqa: S105 - of a test


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, *DURABLE) as server:
        yield server


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    """What an operator sees."""
    async with Redis(port=server.port, protocol=2, decode_responses=True) as client:
        yield client


async def test_a_deleted_topic_is_made_again_under_a_waiting_reader(
    server: RedisServer, client: Redis
) -> None:
    async with await settings(server.url).connect() as queue, await queue.subscribe(TOPIC) as subscription:
        waiting = asyncio.create_task(receive(subscription))
        await eventually(lambda: blocked(client))
        await client.delete(STREAM)
        await queue.publish(numbered(1), TOPIC)
        assert number_of((await waiting)[0]) == 1


async def test_snapshots_are_no_reason_to_warn_and_not_durable(
    forgetful: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with Redis(port=forgetful.port) as client:
        await client.config_set("save", "3600 1")
        async with await settings(forgetful.url).connect() as queue:
            assert not queue.durable
        assert caplog.text == ""
        await client.config_set("maxmemory", "100mb")
        await client.config_set("maxmemory-policy", "allkeys-lru")
        async with await settings(forgetful.url).connect():
            assert "set noeviction" in caplog.text


async def test_what_is_settled_takes_no_room_and_what_is_not_stays(
    server: RedisServer, client: Redis
) -> None:
    async with (
        await settings(server.url).connect() as queue,
        await queue.subscribe(TOPIC) as first,
        await queue.subscribe(TOPIC, group="second") as second,
    ):
        for number in range(5):
            await queue.publish(numbered(number), TOPIC)
        held, *others = await receive(first, 5)
        for delivery in others:
            await delivery.ack()
        await eventually(lambda: pending(client, "default", 1))
        assert await client.xlen(STREAM) == 5  # the other group has not had them
        for delivery in await receive(second, 5):
            await delivery.ack()
        await eventually(lambda: holds(client, 1))
        await held.ack()
        await eventually(lambda: holds(client, 0))


async def test_the_first_settlement_of_a_delivery_counts(server: RedisServer) -> None:
    async with await settings(server.url).connect() as queue, await queue.subscribe(TOPIC) as subscription:
        await queue.publish(numbered(0), TOPIC)
        (delivery,) = await receive(subscription)
        await delivery.nack(delay=0.2)
        await delivery.ack()
        assert (await receive(subscription))[0].attempt == 2


async def test_what_comes_back_is_in_the_order_of_the_topic(server: RedisServer, client: Redis) -> None:
    async with await settings(server.url).connect() as queue, await queue.subscribe(TOPIC) as subscription:
        for number in range(12):
            await queue.publish(numbered(number), TOPIC)
        held = await receive(subscription, 12)
        for returned, delivery in enumerate(reversed(held), start=1):
            await delivery.nack()
            await eventually(partial(given_back, client, returned))
        again: list[int] = []
        while len(again) < 12:
            again += [number_of(delivery) for delivery in await receive(subscription, 5)]
    assert again == list(range(12))


async def test_what_one_member_gives_back_wakes_another(server: RedisServer, client: Redis) -> None:
    config = settings(server.url, visibility_timeout=3600.0)
    async with (
        await config.connect() as one,
        await config.connect() as two,
        await one.subscribe(TOPIC) as first,
        await two.subscribe(TOPIC) as second,
    ):
        await one.publish(numbered(0), TOPIC)
        (delivery,) = await receive(first)
        waiting = asyncio.create_task(receive(second))
        await eventually(lambda: blocked(client))
        await delivery.nack(delay=0.1)
        (delivery,) = await waiting
        waiting = asyncio.create_task(receive(first))
        await eventually(lambda: blocked(client))
        await second.close()
        assert (await waiting)[0].attempt == 3


async def test_members_that_hold_nothing_are_forgotten_and_what_they_hold_is_not(
    server: RedisServer, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_subscription, "_MAX_IDLE_MS", -1)
    async with await settings(server.url, visibility_timeout=3600.0).connect() as queue:
        await queue.publish(numbered(0), TOPIC)
        await client.xgroup_createconsumer(STREAM, "default", "idle")
        await client.xreadgroup("default", "busy", {STREAM: ">"})
        async with await queue.subscribe(TOPIC):
            left = await client.xinfo_consumers(STREAM, "default")
    assert [(member["name"], member["pending"]) for member in left] == [("busy", 1)]


async def test_who_waits_at_the_bell_of_a_member_that_is_gone_is_forgotten(
    server: RedisServer, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await settings(server.url).connect() as queue:
        await (await queue.subscribe(TOPIC)).close()
        await client.xgroup_createconsumer(BELL, "default", "idle")
        async with await queue.subscribe(TOPIC):
            assert await names(client, BELL) == ["idle"]
        monkeypatch.setattr(redis_subscription, "_MAX_IDLE_MS", -1)
        async with await queue.subscribe(TOPIC):
            assert await names(client, BELL) == []


async def test_any_number_of_subscriptions_works_over_one_queue(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    topics = [f"namespace.service{number}" for number in range(120)]  # the driver allows 100 connections
    async with await settings(server.url, visibility_timeout=3600.0).connect() as queue:
        await asyncio.gather(*(queue.publish(numbered(1), topic) for topic in topics))
        for expected in (1, 2):
            # Each holds one when it is closed: the server is told of all of them, and gives them to the next.
            subscriptions = await asyncio.gather(*map(queue.subscribe, topics))
            received = await asyncio.gather(*map(receive, subscriptions))
            assert {delivery.attempt for (delivery,) in received} == {expected}
            await asyncio.gather(*(subscription.close() for subscription in subscriptions))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_user_without_the_rights_is_told(server: RedisServer, client: Redis) -> None:
    await client.acl_setuser(
        "me", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-time"]
    )
    config = settings(server.url, username="me", password="any")
    async with await config.connect() as queue, await queue.subscribe(TOPIC) as subscription:
        with pytest.raises(ConfigError, match="time"):
            await receive(subscription)


async def test_a_subscription_that_ends_leaves_no_member_and_no_connection(
    server: RedisServer, client: Redis
) -> None:
    async with await settings(server.url, visibility_timeout=3600.0).connect() as queue:
        subscription = await queue.subscribe(TOPIC)
        waiting = asyncio.create_task(subscription.receive(1))
        await eventually(lambda: blocked(client))
        await subscription.close()
        with pytest.raises(ClosedError):
            await waiting
        # Nothing waits at the server on its behalf, to be given a message that nobody reads.
        assert not await blocked(client)
        for stream in (STREAM, BELL):
            assert await client.xinfo_consumers(stream, "default") == [], stream
        await queue.publish(numbered(1), TOPIC)
        async with await queue.subscribe(TOPIC) as successor:
            (delivery,) = await receive(successor)
            assert delivery.attempt == 1


async def test_a_topic_that_nobody_reads_expires(server: RedisServer, client: Redis) -> None:
    async with await settings(server.url).connect() as queue:
        async with await queue.subscribe(TOPIC, expires_after=0.3) as subscription:
            waiting = asyncio.create_task(receive(subscription))
            with pytest.raises(TimeoutError):  # while somebody reads it, it stays
                await asyncio.wait_for(asyncio.shield(waiting), 1.0)
            await queue.publish(numbered(1), TOPIC)
            (delivery,) = await waiting
            await delivery.nack()
        await eventually(lambda: is_empty(client))
        async with await queue.subscribe(TOPIC) as subscription:
            await queue.publish(numbered(2), TOPIC)
            assert number_of((await receive(subscription))[0]) == 2


async def test_what_is_no_message_is_put_aside(
    server: RedisServer, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with await settings(server.url).connect() as queue, await queue.subscribe(TOPIC) as subscription:
        await client.xadd(STREAM, {"m": "no message"})
        await client.xadd(STREAM, {"foreign": "entry"})
        await queue.publish(numbered(1), TOPIC)
        numbers: list[int] = []
        while not numbers:
            for delivery in await receive(subscription, 5):
                numbers.append(number_of(delivery))
                await delivery.ack()
        await eventually(lambda: holds(client, 2, f"{STREAM}.dead_letters"))
        await eventually(lambda: holds(client, 0))
    assert "no message" in caplog.text


async def test_full_dead_letters_make_room(server: RedisServer) -> None:
    config = settings(server.url, max_dead_letters=3, max_deliveries=1)
    async with await config.connect() as queue, await queue.subscribe(TOPIC) as subscription:
        for number in range(5):
            await queue.publish(numbered(number), TOPIC)
            (delivery,) = await receive(subscription)
            await delivery.nack()
        async with await queue.subscribe(f"{TOPIC}.dead_letters") as dead:
            kept: list[int] = []
            while len(kept) < 3:
                for delivery in await receive(dead, 5):
                    kept.append(number_of(delivery))
                    await delivery.ack()
    assert kept == [2, 3, 4]


async def test_a_server_without_memory_pushes_back(server: RedisServer, client: Redis) -> None:
    async with await settings(server.url).connect() as queue:
        await queue.publish(numbered(0), TOPIC)
        await client.config_set("maxmemory", "1kb")
        with pytest.raises(QueueFullError) as caught:
            await queue.publish(numbered(1), TOPIC)
        assert caught.value.topic == TOPIC
        await client.config_set("maxmemory", "0")
        await queue.publish(numbered(2), TOPIC)


async def test_large_messages_travel_alone(server: RedisServer) -> None:
    async with await settings(server.url).connect() as queue, await queue.subscribe(TOPIC) as subscription:
        large = [QueueMessage(data={"number": n, "text": "x" * 800_000}) for n in range(5)]
        await asyncio.gather(*(queue.publish(message, TOPIC) for message in large))
        numbers: list[int] = []
        while len(numbers) < 5:
            numbers += [number_of(delivery) for delivery in await receive(subscription, 5)]
        assert numbers == [0, 1, 2, 3, 4]


async def test_credentials_open_the_server_and_are_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path, "--requirepass", SECRET) as server:
        url = server.url.replace("//", "//default:hush%2Fhush@")
        config = settings(url)
        with caplog.at_level(logging.DEBUG, logger="llama_deploy"):
            async with await config.connect() as queue:
                await queue.publish(QueueMessage(), TOPIC)
                assert queue.as_config().public_settings()["url"] == server.url
            for refused in (settings(server.url), settings(url.replace("hush@", "hash@"))):
                with pytest.raises(ConfigError, match=str(server.port)) as error:
                    await refused.connect()
                assert "hush" not in str(error.value)
    shown = [repr(config), str(config), str(config.public_settings()), config.model_dump_json(), caplog.text]
    assert "hush" not in " ".join(shown)


async def blocked(client: Redis) -> bool:
    """Whether somebody waits at the server."""
    return bool((await client.info("clients"))["blocked_clients"])


async def pending(client: Redis, group: str, count: int) -> bool:
    return bool((await client.xpending(STREAM, group))["pending"] == count)


async def holds(client: Redis, count: int, stream: str = STREAM) -> bool:
    return bool(await client.xlen(stream) == count)


async def given_back(client: Redis, count: int) -> bool:
    return bool(await client.zcard(f"llama_deploy:deadlines:default:{TOPIC}") == count)


async def scripts(client: Redis) -> int:
    """How many scripts the server has run."""
    calls: int = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
    return calls


async def ran_more(client: Redis, before: int) -> bool:
    return await scripts(client) > before


async def is_empty(client: Redis) -> bool:
    return await client.dbsize() == 0


async def names(client: Redis, stream: str) -> list[str]:
    return [member["name"] for member in await client.xinfo_consumers(stream, "default")]


async def test_a_cancellation_is_not_lost_while_the_driver_connects(server: RedisServer) -> None:
    async def read(queue: AbstractMessageQueue, topic: str) -> None:
        async with await queue.subscribe(topic) as subscription:
            await subscription.receive(1)

    for steps in range(1, 30):
        async with await settings(server.url).connect() as queue:
            reading = [asyncio.create_task(read(queue, f"topic-{n}")) for n in range(2)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in reading:
                task.cancel()
            _, deaf = await asyncio.wait(reading, timeout=5)
            assert not deaf, f"not cancelled after {steps} steps of the loop"
