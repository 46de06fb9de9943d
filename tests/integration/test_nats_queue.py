"""Outages of NATS JetStream lose no message; and what only this backend does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import RetentionPolicy

from llama_deploy.errors import ConfigError, PayloadTooLargeError
from llama_deploy.message_queues.base import MessageQueueConfig
from llama_deploy.message_queues.nats import NatsMessageQueue, NatsMessageQueueConfig
from llama_deploy.message_queues.nats.connection import LiveConnection, NatsConnection
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.message_queue_outages import MessageQueueOutages
from llama_deploy.testing.tcp_proxy import TcpProxy
from tests.integration.numbered import TOPIC, number_of, numbered, publish, receive, take
from tests.servers.nats import NatsServer

SECRET = "hush/hush"  # noqa: S105 - of a test


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        yield server


def settings(url: str, **fields: Any) -> NatsMessageQueueConfig:
    return NatsMessageQueueConfig(url=url, **{"visibility_timeout": 1.0, **fields})


class TestOutages(MessageQueueOutages):
    max_repeats = 5

    @pytest.fixture
    def broker(self, server: NatsServer) -> NatsServer:
        return server

    @pytest.fixture
    def forgetful_broker(self, server: NatsServer) -> NatsServer:
        return server

    def settings(self, port: int, **fields: Any) -> MessageQueueConfig:
        return settings(f"nats://127.0.0.1:{port}", **fields)

    def settings_of_forgetful(self, port: int) -> MessageQueueConfig:
        return self.settings(port, storage="memory")


@pytest.fixture
def pings(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Future[bool]]:
    """The answers to the pings that the driver is asked to send."""
    answers: list[asyncio.Future[bool]] = []
    send_ping = Client._send_ping

    async def record(client: Client, answer: asyncio.Future[bool]) -> None:
        answers.append(answer)
        await send_ping(client, answer)

    monkeypatch.setattr(Client, "_send_ping", record)
    return answers


Pings = list[asyncio.Future[bool]]


async def next_ping(pings: Pings, proxy: TcpProxy) -> asyncio.Future[bool]:
    """Hold the connection until a ping is under way; return its answer."""
    before = len(pings)
    proxy.hold()
    await eventually(lambda: len(pings) > before)
    return pings[-1]


async def test_an_answer_that_is_late_costs_no_connection(
    server: NatsServer, proxy: TcpProxy, pings: Pings, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"nats://127.0.0.1:{await proxy.start(server.port)}"
    async with await NatsMessageQueue.connect(settings(url)) as queue:
        await queue.publish(numbered(0), TOPIC)
        pong = await next_ping(pings, proxy)
        await asyncio.wait([pong], timeout=2.5)
        proxy.resume()
        await queue.publish(numbered(1), TOPIC)
        async with await queue.subscribe(TOPIC) as subscription:
            assert await take(subscription, 2) == [0, 1]
        # The next ping is a new one, and is answered too.
        pong = await next_ping(pings, proxy)
        proxy.resume()
        assert await asyncio.wait_for(pong, 10)
        assert proxy.accepted == 1
    assert not told(caplog)


async def test_closing_in_the_turn_in_which_a_ping_is_answered_ends(
    server: NatsServer, proxy: TcpProxy, pings: Pings, caplog: pytest.LogCaptureFixture
) -> None:
    queue = await NatsMessageQueue.connect(settings(f"nats://127.0.0.1:{await proxy.start(server.port)}"))
    pong = await next_ping(pings, proxy)
    proxy.resume()
    async with asyncio.timeout(10):
        await pong
        await queue.cleanup()
    assert not told(caplog)


async def test_closing_while_a_ping_waits_for_its_answer_loses_nothing(
    server: NatsServer, proxy: TcpProxy, pings: Pings, caplog: pytest.LogCaptureFixture
) -> None:
    def keeps_the_connection() -> bool:
        return any(task.get_name() == "connection to NATS" for task in asyncio.all_tasks())

    queue = await NatsMessageQueue.connect(settings(f"nats://127.0.0.1:{await proxy.start(server.port)}"))
    await next_ping(pings, proxy)
    assert keeps_the_connection()
    closing = asyncio.create_task(queue.cleanup())
    await eventually(lambda: not keeps_the_connection(), seconds=1.0)
    proxy.resume()
    async with asyncio.timeout(10):
        await closing
    assert not told(caplog)


async def test_closing_ends_though_the_driver_swallows_it_while_it_connects_again(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = await NatsMessageQueue.connect(settings(server.url))
    begun = asyncio.Event()

    async def swallow(*_arguments: object, **_options: object) -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise OSError("nobody is there")

    monkeypatch.setattr(Client, "connect", swallow)
    server.kill()
    await begun.wait()
    async with asyncio.timeout(10):
        await queue.cleanup()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was told as a trouble."""
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


async def test_what_could_not_be_given_back_in_time_is_the_next_members(
    server: NatsServer, proxy: TcpProxy
) -> None:
    url = f"nats://127.0.0.1:{await proxy.start(server.port)}"
    async with await settings(server.url).connect() as queue, await queue.subscribe(TOPIC) as subscription:
        async with await settings(url).connect() as slow, await slow.subscribe(TOPIC) as slow_subscription:
            await queue.publish(numbered(0), TOPIC)
            [late] = await receive(slow_subscription)
            proxy.target_ports = []
            proxy.cut()
            await late.nack()
            [delivery] = await receive(subscription)
            await delivery.extend(60.0)
            proxy.target_ports = [server.port]
            await slow.publish(numbered(1), TOPIC)
        assert await take(subscription, 1) == [1]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(subscription.receive(1), 0.5)
        await delivery.ack()


async def test_what_a_closed_subscription_held_comes_back_at_once(server: NatsServer) -> None:
    async with await settings(server.url, visibility_timeout=60.0).connect() as queue:
        await publish(queue, 0, 1, 2)
        async with await queue.subscribe(TOPIC) as held:
            assert len(await receive(held, 2)) == 2
        async with await queue.subscribe(TOPIC) as subscription:
            assert [number_of((await receive(subscription))[0]) for _ in range(3)] == [0, 1, 2]


async def test_a_cancellation_that_the_driver_swallows_still_ends_the_call(server: NatsServer) -> None:
    connection = NatsConnection(settings(server.url))
    await connection.open()
    begun = asyncio.Event()

    async def swallow(_live: LiveConnection) -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    call = asyncio.create_task(connection.call_forever(swallow))
    await begun.wait()
    call.cancel()
    await asyncio.wait([call], timeout=10)
    assert call.cancelled()
    await connection.close()


async def test_memory_is_not_durable(server: NatsServer) -> None:
    async with await settings(server.url, storage="memory").connect() as queue:
        assert not queue.durable


async def test_a_message_published_again_is_the_same_message_in_its_topic(server: NatsServer) -> None:
    message, end = numbered(1), numbered(2)
    async with await settings(server.url).connect() as queue:
        for topic in (TOPIC, "another topic"):
            for each in (message, message, end):
                await queue.publish(each, topic)
            async with await queue.subscribe(topic) as subscription:
                numbers: list[int] = []
                async with asyncio.timeout(10):
                    while 2 not in numbers:
                        for delivery in await subscription.receive(5):
                            numbers.append(number_of(delivery))
                            await delivery.ack()
                assert numbers == [1, 2]


async def test_any_name_is_a_topic(server: NatsServer) -> None:
    names = ["*", ">", "a..b", ".", "with space", "ü", "a*b", "%", "%25", "a.%.b"]
    async with await settings(server.url).connect() as queue:
        for name in names:
            await queue.publish(QueueMessage(data={"name": name}), name)
        for name in names:
            async with await queue.subscribe(name) as subscription, asyncio.timeout(10):
                (delivery,) = await subscription.receive(5)
                assert delivery.message.data == {"name": name}
                await delivery.ack()


async def test_a_topic_that_nobody_reads_expires(server: NatsServer) -> None:
    async with await settings(server.url).connect() as queue:
        async with await queue.subscribe(TOPIC, expires_after=0.2) as subscription:
            await queue.publish(QueueMessage(), TOPIC)
        client = await nats.connect(server.url)
        stream = client.jetstream()

        async def is_empty() -> bool:
            state = (await stream.stream_info("llama_deploy")).state
            return state.messages == state.consumer_count == 0

        await eventually(is_empty)
        await client.close()
        # Who joins later makes the topic anew.
        async with await queue.subscribe(TOPIC) as subscription, asyncio.timeout(10):
            await queue.publish(QueueMessage(), TOPIC)
            assert len(await subscription.receive(1)) == 1


async def test_a_subscription_outlives_the_removal_of_its_group(server: NatsServer) -> None:
    async with await settings(server.url).connect() as queue, await queue.subscribe(TOPIC) as subscription:
        waiting = asyncio.create_task(subscription.receive(1))
        client = await nats.connect(server.url)
        await client.jetstream().delete_stream("llama_deploy")
        await client.close()
        message = numbered(1)

        async def has_come() -> bool:
            # Until the reader has noticed, its topic may be remembered as made.
            await queue.publish(QueueMessage(data=message.data), TOPIC)
            return waiting.done()

        await eventually(has_come)
        assert (await waiting)[0].message.data == message.data


async def test_what_is_no_message_is_put_aside(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with await settings(server.url).connect() as queue, await queue.subscribe(TOPIC) as subscription:
        client = await nats.connect(server.url)
        await client.jetstream().publish(f"llama_deploy.{TOPIC}", b"no message")
        await queue.publish(numbered(1), TOPIC)
        (delivery,) = await receive(subscription)
        assert number_of(delivery) == 1
        await delivery.ack()

        async def dead_letter() -> bool:
            state = await client.jetstream().stream_info("llama_deploy", subjects_filter=">")
            return state.state.subjects == {f"llama_deploy.{TOPIC}.dead_letters": 1}

        await eventually(dead_letter)
        await client.close()
    assert "no message" in caplog.text


async def test_full_dead_letters_make_room(server: NatsServer) -> None:
    async with (
        await settings(server.url, max_messages_per_topic=4, max_deliveries=1).connect() as queue,
        await queue.subscribe(TOPIC) as subscription,
    ):
        async with asyncio.timeout(20):
            for number in range(5):
                await queue.publish(numbered(number), TOPIC)
                (delivery,) = await subscription.receive(1)
                await delivery.nack()
            async with await queue.subscribe(f"{TOPIC}.dead_letters") as dead:
                kept = await dead.receive(10)
        assert [number_of(delivery) for delivery in kept] == [2, 3, 4]


async def test_a_message_too_large_is_refused_and_harms_no_other(server: NatsServer) -> None:
    async with await settings(server.url).connect() as queue:
        with pytest.raises(PayloadTooLargeError):
            await queue.publish(QueueMessage(data={"text": "x" * 1024 * 1024}), TOPIC)
        await queue.publish(QueueMessage(), TOPIC)


async def test_a_foreign_stream_is_refused(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(name="taken", subjects=["taken.>"])
    await client.close()
    with pytest.raises(ConfigError, match="taken"):
        await settings(server.url, stream="taken").connect()
    with pytest.raises(ConfigError, match="replicas"):
        await settings(server.url, stream="other", replicas=3).connect()


async def test_a_reader_outlasts_refused_credentials(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, "--user", "me", "--pass", SECRET)
    with server:
        config = settings(server.url, username="me", password=SECRET)
        async with await config.connect() as queue, await queue.subscribe(TOPIC) as subscription:
            receiving = asyncio.create_task(receive(subscription))
            server.kill()
            server.arguments = ("--user", "me", "--pass", "another")
            await asyncio.to_thread(server.start)
            with pytest.raises(ConfigError, match="credentials"):
                await config.connect()
            assert not receiving.done()
            server.kill()
            server.arguments = ("--user", "me", "--pass", SECRET)
            await asyncio.to_thread(server.start)
            await publish(queue, 1)
            (delivery,) = await receiving
            assert number_of(delivery) == 1


async def test_a_reader_outlasts_what_is_refused_for_a_while(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = settings(server.url, stream="mine")
    async with await config.connect() as queue, await queue.subscribe(TOPIC) as subscription:
        client = await nats.connect(server.url)
        streams = client.jetstream()
        await streams.delete_stream("mine")
        await streams.add_stream(name="mine", subjects=["mine.>"], max_consumers=1)
        await streams.add_consumer("mine", durable_name="other")  # so that there is no room for a group
        receiving = asyncio.create_task(receive(subscription))
        await eventually(lambda: "denies access that it has granted before" in caplog.text)
        assert not receiving.done()
        await streams.delete_stream("mine")
        await client.close()
        await eventually(lambda: "grants access again" in caplog.text)
        await publish(queue, 1)
        (delivery,) = await receiving
        assert number_of(delivery) == 1
    assert caplog.text.count("denies access that it has granted before") == 1


async def test_a_message_larger_than_the_stream_takes_is_refused_for_good(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(
        name="small", subjects=["small.>"], retention=RetentionPolicy.INTEREST, max_msg_size=1000
    )
    await client.close()
    async with await settings(server.url, stream="small").connect() as queue:
        with pytest.raises(PayloadTooLargeError, match="bytes"):
            await queue.publish(QueueMessage(data={"text": "x" * 2000}), TOPIC)
        await queue.publish(QueueMessage(), TOPIC)


async def test_credentials_open_the_server_and_are_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with NatsServer(tmp_path, "--user", "me", "--pass", SECRET) as server:
        url = server.url.replace("//", "//me:hush%2Fhush@")
        config = settings(url)
        with caplog.at_level(logging.DEBUG, logger="llama_deploy"):
            async with await config.connect() as queue:
                await queue.publish(QueueMessage(), TOPIC)
                assert (
                    queue.as_config().public_settings().items()
                    >= {"type": "nats", "url": server.url, "stream": "llama_deploy"}.items()
                )
            with pytest.raises(ConfigError, match="credentials") as refused:
                await settings(url.replace("hush@", "hash@")).connect()
            for wrong in (f"http://me:{SECRET}@host", f"me:{SECRET}@"):
                with pytest.raises(ValueError, match="url") as invalid:
                    settings(wrong)
                assert "hush" not in str(invalid.value)
            with pytest.raises(ValueError, match="password") as invalid:
                settings(url, password=[SECRET])
            assert "hush" not in str(invalid.value)
    assert not {"username", "password", "token", "credentials"} & config.public_settings().keys()
    shown = [repr(config), str(config), str(config.public_settings()), config.model_dump_json(), caplog.text]
    assert "hush" not in " ".join([*shown, str(refused.value)])
    assert config.password is not None
    assert config.password.get_secret_value() == SECRET


async def test_a_token_opens_the_server(tmp_path: Path) -> None:
    with NatsServer(tmp_path, "--auth", SECRET) as server:
        async with await settings(server.url, token=SECRET).connect() as queue:
            await queue.publish(QueueMessage(), TOPIC)


async def test_a_credentials_file_that_is_none_is_told(server: NatsServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="credentials"):
        await settings(server.url, credentials=str(tmp_path / "none.creds")).connect()
