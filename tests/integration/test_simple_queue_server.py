"""The simple queue's server: what it refuses, what it survives, and what a killed one leaves."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pydantic_core
import pytest

from llama_deploy.errors import (
    ClosedError,
    ConfigError,
    ConflictError,
    InvalidRequestError,
    MessageDecodeError,
    PayloadTooLargeError,
    QueueFullError,
    SerializationError,
    TopicNotFoundError,
    UnavailableError,
)
from llama_deploy.message_queues import (
    AbstractMessageQueue,
    LocalMessageQueue,
    SimpleMessageQueue,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
    Subscription,
    config_from_settings,
)
from llama_deploy.message_queues.simple.host import BrokerHost
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from llama_deploy.web.problems import MEDIA_TYPE

DEADLINE = 20.0

SERVER_PROGRAM = """
import asyncio, pathlib, sys
from llama_deploy.message_queues import SimpleMessageQueueConfig, SimpleMessageQueueServer

async def main():
    config = SimpleMessageQueueConfig(port=int(sys.argv[1]), journal_path=pathlib.Path(sys.argv[2]))
    async with SimpleMessageQueueServer(config) as server:
        print(server.config.port, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def server() -> AsyncIterator[SimpleMessageQueueServer]:
    config = SimpleMessageQueueConfig(port=0, max_messages_per_topic=10, max_body_bytes=10_000)
    async with SimpleMessageQueueServer(config) as server:
        yield server


@pytest.fixture
async def http(server: SimpleMessageQueueServer) -> AsyncIterator[HttpConnection]:
    connection = HttpConnection(server.config.base_url)
    yield connection
    await connection.close()


async def call(http: HttpConnection, method: str, path: str, body: Any = None, **params: Any) -> Any:
    return await http.request(HttpRequest(method, path, json=body, params=params))


async def receive(subscription: Subscription, count: int) -> list[QueueMessage]:
    """Receive and acknowledge `count` messages."""
    messages: list[QueueMessage] = []
    async with asyncio.timeout(DEADLINE):
        while len(messages) < count:
            for delivery in await subscription.receive(count - len(messages)):
                messages.append(delivery.message)
                await delivery.ack()
    return messages


async def until_waiting(http: HttpConnection, topic: str) -> None:
    """Wait until a consumer long-polls."""
    async with asyncio.timeout(DEADLINE):
        while True:
            depth = (await call(http, "GET", "/topics"))[topic]
            if depth["groups"]["default"]["waiting_members"]:
                return


async def depths(config: SimpleMessageQueueConfig) -> dict[str, Any]:
    """Return what each topic of a server holds."""
    http = HttpConnection(config.base_url)
    try:
        return dict(await call(http, "GET", "/topics"))
    finally:
        await http.close()


async def is_settled(config: SimpleMessageQueueConfig, topic: str, group: str) -> bool:
    depth = (await depths(config))[topic]["groups"][group]
    return not (depth["ready"] or depth["delayed"] or depth["in_flight"])


async def has_group(config: SimpleMessageQueueConfig, topic: str, group: str) -> bool:
    return group in (await depths(config)).get(topic, {"groups": ()})["groups"]


def actions_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record, "action", "") for record in caplog.records]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def server_process(port: int, journal: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a server in a process of its own; kill -9 it at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER_PROGRAM, str(port), str(journal), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            assert int(await process.stdout.readline()) == port
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_it_tells_what_it_is(server: SimpleMessageQueueServer, http: HttpConnection) -> None:
    home = await call(http, "GET", "/")
    assert (home["type"], home["status"], home["durable"]) == ("simple", "ok", False)
    assert await call(http, "GET", "/health") == {"status": "ok", "durable": False}
    assert config_from_settings(server.config.public_settings()).public_settings() == {
        "type": "simple",
        "host": "127.0.0.1",
        "port": server.config.port,
        "use_ssl": False,
    }


async def test_the_routes_by_hand(http: HttpConnection) -> None:
    message = QueueMessage(data={"a": 1}).to_wire()
    created = await call(http, "POST", "/topics/my%20topic%2Fwith-slash", {"group": "g"})
    assert (created["topic"], created["group"]) == ("my topic/with-slash", "g")
    assert await call(http, "POST", "/messages/t", message) == {"accepted": 1}
    assert await call(http, "POST", "/messages/t", [{"data": {"a": 2}}, {"data": {"a": 3}}]) == {
        "accepted": 2
    }
    taken = await call(http, "GET", "/messages/t", max=10, wait=5)
    assert [delivery["message"]["data"]["a"] for delivery in taken["deliveries"]] == [1, 2, 3]
    assert taken["deliveries"][0]["message"] == message
    ids = [delivery["delivery_id"] for delivery in taken["deliveries"]]
    settlements = [
        {"delivery_id": ids[0], "action": "ack"},
        {"delivery_id": ids[1], "action": "nack"},
        {"delivery_id": ids[2], "action": "extend", "seconds": 60},
        {"delivery_id": "unknown", "action": "ack"},
    ]
    assert await call(http, "POST", "/deliveries/settle", settlements) is None
    depth = (await call(http, "GET", "/topics"))["t"]
    assert depth["messages"] == 2
    assert depth["groups"]["default"] == {"ready": 1, "delayed": 0, "in_flight": 1, "waiting_members": 0}


@pytest.mark.parametrize(
    ("method", "path", "body", "error"),
    [
        ("POST", "/messages/t", b"{", MessageDecodeError),
        ("POST", "/messages/t", b"\xff\xfe", MessageDecodeError),
        ("POST", "/messages/t", b"", MessageDecodeError),
        ("POST", "/messages/t", b"[]", MessageDecodeError),
        ("POST", "/messages/t", b"7", MessageDecodeError),
        ("POST", "/messages/t", b'{"v": 2}', MessageDecodeError),
        ("POST", "/messages/t", b'[{"data": {}}, {"action": "make_coffee"}]', MessageDecodeError),
        ("POST", "/messages/t", b"[" * 9_000, MessageDecodeError),
        ("POST", "/messages/t", b'{"data": {"a": "%s"}}' % (b"x" * 10_000), PayloadTooLargeError),
        ("POST", f"/messages/{'n' * 300}", b"{}", InvalidRequestError),
        ("POST", "/topics/t", b'{"group": ""}', InvalidRequestError),
        ("POST", "/topics/t", b'{"expires_after": -1}', InvalidRequestError),
        ("POST", "/topics/t", b'{"group": 7}', InvalidRequestError),
        ("GET", "/messages/unknown", None, TopicNotFoundError),
        ("GET", "/messages/unknown?wait=1", None, TopicNotFoundError),
        ("GET", "/messages/t?max=0", None, InvalidRequestError),
        ("GET", "/messages/t?max=many", None, InvalidRequestError),
        ("GET", "/messages/t?wait=nan", None, InvalidRequestError),
        ("GET", "/messages/t?wait=-1", None, InvalidRequestError),
        ("POST", "/deliveries/settle", b"{", InvalidRequestError),
        ("POST", "/deliveries/settle", b'[{"delivery_id": "x", "action": "eat"}]', InvalidRequestError),
        (
            "POST",
            "/deliveries/settle",
            b'[{"delivery_id": "x", "action": "nack", "seconds": -1}]',
            InvalidRequestError,
        ),
    ],
)
async def test_bad_input_is_refused_by_name(
    http: HttpConnection, method: str, path: str, body: bytes | None, error: type[Exception]
) -> None:
    headers = {"Content-Type": "application/json"}
    with pytest.raises(error) as caught:
        await http.request(HttpRequest(method, path, content=body, headers=headers))
    assert type(caught.value) is error
    assert "t" not in await call(http, "GET", "/topics")


NO_CLEAN_JSON = {
    "a lone surrogate": b'"\\ud800"',
    "bytes that are not UTF-8": b'"\xff\xed\xa0\x80"',
    "not a number": b"NaN",
    "infinity": b"-Infinity",
    "a float out of range": b"1e999",
    "a huge integer": b"1" + b"0" * 400,
    "an integer that Python does not read": b"1" + b"0" * 5000,
    "nested lists": b"[" * 1000 + b"]" * 1000,
    "nested objects": b'{"a":' * 1000 + b"1" + b"}" * 1000,
    "lists nested without end": b"[" * 4000,
}


@pytest.mark.parametrize("value", NO_CLEAN_JSON.values(), ids=NO_CLEAN_JSON.keys())
@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/messages/t", b"%s"),
        ("/messages/t", b"[%s]"),
        ("/messages/t", b'{"id_":%s}'),
        ("/messages/t", b'{"v":%s}'),
        ("/messages/t", b'{"stats":{"publish_time":%s}}'),
        ("/messages/t", b'{"data":{%s:1}}'),
        ("/topics/t", b"%s"),
        ("/topics/t", b'{"group":%s}'),
        ("/topics/t", b'{"expires_after":%s}'),
        ("/deliveries/settle", b"%s"),
        ("/deliveries/settle", b'[{"delivery_id":%s,"action":"ack"}]'),
        ("/deliveries/settle", b'[{"delivery_id":"x","action":"nack","seconds":%s}]'),
    ],
)
async def test_what_is_hardly_json_is_refused_and_never_breaks_the_server(
    http: HttpConnection, path: str, template: bytes, value: bytes
) -> None:
    headers = {"Content-Type": "application/json"}
    status, body = await http.send(HttpRequest("POST", path, content=template % value, headers=headers))
    assert 400 <= status < 500
    assert json.loads(body)["status"] == status
    assert await call(http, "GET", "/topics") == {}


@pytest.mark.parametrize("name", ["not a number", "infinity", "a float out of range", "a huge integer"])
async def test_numbers_that_json_hardly_knows_pass_through_a_message(
    server: SimpleMessageQueueServer, http: HttpConnection, name: str
) -> None:
    headers = {"Content-Type": "application/json"}
    content = b'{"data":{"a":%s}}' % NO_CLEAN_JSON[name]
    await http.request(HttpRequest("POST", "/messages/t", content=content, headers=headers))
    async with SimpleMessageQueue(server.config) as queue, await queue.subscribe("t") as subscription:
        (message,) = await receive(subscription, 1)
    assert repr(message.data["a"]) == repr(pydantic_core.from_json(NO_CLEAN_JSON[name]))


@pytest.mark.parametrize("levels", [170, 178, 179, 196, 197, 198, 199, 200, 201])
async def test_a_message_that_was_taken_can_be_received_however_deep_it_is(
    server: SimpleMessageQueueServer, http: HttpConnection, levels: int
) -> None:
    content = b'{"data":{"a":%s}}' % (b"[" * levels + b"]" * levels)
    headers = {"Content-Type": "application/json"}
    status, _ = await http.send(HttpRequest("POST", "/messages/t", content=content, headers=headers))
    assert status in {200, 422}
    if status == 200:
        async with SimpleMessageQueue(server.config) as queue, await queue.subscribe("t") as subscription:
            (message,) = await receive(subscription, 1)
        assert message.encode().count(b"[") == levels


@pytest.mark.parametrize("levels", [200, 250])
async def test_a_message_that_nobody_could_read_is_refused_to_its_publisher(
    server: SimpleMessageQueueServer, levels: int
) -> None:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    async with SimpleMessageQueue(server.config) as remote, server.local_queue() as local:
        for queue in (remote, local):
            with pytest.raises(SerializationError):
                await queue.publish(QueueMessage(data={"value": value}), "t")


async def test_a_full_topic_answers_429_and_when_to_retry(http: HttpConnection) -> None:
    batch = [QueueMessage().to_wire() for _ in range(12)]
    assert await call(http, "POST", "/messages/t", batch) == {"accepted": 10}
    with pytest.raises(QueueFullError):
        await call(http, "POST", "/messages/t", QueueMessage().to_wire())
    status, body = await http.send(HttpRequest("POST", "/messages/t", json=QueueMessage().to_wire()))
    assert status == 429
    assert json.loads(body)["retry_after"] > 0


@pytest.mark.parametrize("limit", ["max_bytes_per_topic", "max_body_bytes"])
async def test_a_message_that_is_too_large_takes_no_other_along(limit: str) -> None:
    sizes = [10, 10, 30_000, 10, 9_000, 9_000, 10]
    messages = [QueueMessage(data={"value": "x" * size}) for size in sizes]
    config = SimpleMessageQueueConfig.model_validate({"port": 0, limit: 25_000})
    async with (
        SimpleMessageQueueServer(config) as server,
        await SimpleMessageQueue.connect(server.config) as queue,
    ):
        outcomes = await asyncio.gather(
            *(queue.publish(message, "t") for message in messages), return_exceptions=True
        )
        async with await queue.subscribe("t") as subscription:
            received = await receive(subscription, 6)
    assert [type(outcome) for outcome in outcomes].index(PayloadTooLargeError) == 2
    assert [message.id_ for message in received] == [each.id_ for each in messages if each is not messages[2]]


async def test_settlements_that_do_not_fit_into_one_request_are_not_lost() -> None:
    config = SimpleMessageQueueConfig(port=0, max_body_bytes=5_000)
    async with (
        SimpleMessageQueueServer(config) as server,
        server.local_queue() as local,
        await SimpleMessageQueue.connect(server.config) as queue,
        await queue.subscribe("t") as subscription,
    ):
        for _ in range(300):
            await local.publish(QueueMessage(), "t")
        deliveries = [each for _ in range(3) for each in await subscription.receive(100)]
        for delivery in deliveries:
            await delivery.ack()
        await eventually(lambda: is_settled(server.config, "t", "default"))


async def test_the_openapi_document_describes_bodies_and_problems(http: HttpConnection) -> None:
    document = await call(http, "GET", "/openapi.json")
    publish = document["paths"]["/messages/{topic}"]["post"]
    assert {"$ref": "#/components/schemas/QueueMessage"} in publish["requestBody"]["content"][
        "application/json"
    ]["schema"]["anyOf"]
    assert "QueueMessage" in document["components"]["schemas"]
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    assert publish["responses"]["4XX"]["content"] == publish["responses"]["5XX"]["content"] == problem
    assert document["components"]["schemas"]["Problem"]["properties"]["status"]["type"] == "integer"


async def test_a_long_poll_wakes_at_once(server: SimpleMessageQueueServer, http: HttpConnection) -> None:
    loop = asyncio.get_running_loop()
    async with (
        await SimpleMessageQueue.connect(server.config) as queue,
        await queue.subscribe("t") as subscription,
    ):
        for _ in range(5):
            receiving = asyncio.create_task(receive(subscription, 1))
            await until_waiting(http, "t")
            since = loop.time()
            await queue.publish(QueueMessage(), "t")
            await receiving
            assert loop.time() - since < 10, "far below the 30 seconds of a poll"


async def test_a_consumer_that_disconnects_while_it_waits_gives_everything_back(
    server: SimpleMessageQueueServer, http: HttpConnection
) -> None:
    await call(http, "POST", "/messages/t", QueueMessage(data={"number": 1}).to_wire())
    taken = await call(http, "GET", "/messages/t", subscription="s", visibility=3600)
    assert len(taken["deliveries"]) == 1
    dying = HttpConnection(server.config.base_url)
    poll = asyncio.create_task(call(dying, "GET", "/messages/t", subscription="s", wait=60))
    await until_waiting(http, "t")
    poll.cancel()
    await asyncio.gather(poll, return_exceptions=True)
    await dying.close()
    again = await call(http, "GET", "/messages/t", wait=DEADLINE)
    assert [delivery["attempt"] for delivery in again["deliveries"]] == [2]


async def test_a_poll_that_arrives_after_its_subscription_ended_takes_nothing(http: HttpConnection) -> None:
    await call(http, "POST", "/messages/t", QueueMessage().to_wire())
    await call(http, "DELETE", "/subscriptions/s")
    with pytest.raises(ConflictError):
        await call(http, "GET", "/messages/t", subscription="s", wait=1)


class OfANewerRelease(QueueMessage):
    """A message that this release cannot read."""

    def encode(self) -> bytes:
        return b'{"v":2,"from":"a newer release"}'


@pytest.mark.parametrize("local", [True, False])
async def test_what_is_no_message_is_put_aside(server: SimpleMessageQueueServer, *, local: bool) -> None:
    queue: AbstractMessageQueue = server.local_queue() if local else SimpleMessageQueue(server.config)
    async with server.local_queue() as inside, queue, await queue.subscribe("t") as subscription:
        await inside.publish(OfANewerRelease(), "t")
        await queue.publish(QueueMessage(data={"number": 1}), "t")
        (message,) = await receive(subscription, 1)
        assert message.data == {"number": 1}
    assert (await depths(server.config))["t.dead_letters"]["messages"] == 1


async def test_messages_larger_than_the_server_takes_fail_alone(server: SimpleMessageQueueServer) -> None:
    async with SimpleMessageQueue(server.config) as queue:
        with pytest.raises(PayloadTooLargeError):
            await queue.publish(QueueMessage(data={"a": "x" * 10_000}), "t")
        await queue.publish(QueueMessage(), "t")


async def test_a_server_that_is_not_there_is_an_error_after_a_while() -> None:
    config = SimpleMessageQueueConfig(port=free_port(), retry_seconds=0.1)
    async with SimpleMessageQueue(config) as queue:
        with pytest.raises(UnavailableError):
            await queue.publish(QueueMessage(), "t")
        with pytest.raises(UnavailableError):
            await queue.subscribe("t")
    with pytest.raises(UnavailableError):
        await config.connect()


async def test_closing_ends_a_subscribing_that_waits_for_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = SimpleMessageQueue(port=free_port(), retry_seconds=3600)
    subscribing = asyncio.create_task(queue.subscribe("t"))
    await eventually(lambda: "queue_lost" in actions_of(caplog))
    await queue.cleanup()
    with pytest.raises(ClosedError):
        await asyncio.wait_for(subscribing, DEADLINE)


async def test_starting_and_closing_twice_is_harmless(server: SimpleMessageQueueServer) -> None:
    port = server.config.port
    await server.start()
    assert server.config.port == port
    await server.close()
    await server.close()
    with pytest.raises(UnavailableError):
        server.local_queue()


async def test_a_taken_port_is_said(server: SimpleMessageQueueServer) -> None:
    with pytest.raises(ConfigError, match="another process uses this port"):
        await SimpleMessageQueueServer(server.config).start()


async def test_launch_server_serves_until_it_is_cancelled() -> None:
    config = SimpleMessageQueueConfig(port=free_port())
    serving = asyncio.create_task(SimpleMessageQueueServer(config).launch_server())
    async with await SimpleMessageQueue.connect(config) as queue:
        await queue.publish(QueueMessage(), "t")
    serving.cancel()
    await serving


async def test_a_closing_server_does_not_wait_for_long_polls() -> None:
    config = SimpleMessageQueueConfig(port=0)
    server = SimpleMessageQueueServer(config)
    await server.start()
    http = HttpConnection(server.config.base_url)
    await call(http, "POST", "/topics/t")
    poll = asyncio.create_task(call(http, "GET", "/messages/t", wait=60))
    await until_waiting(http, "t")
    async with asyncio.timeout(30):
        await server.close()
        assert await poll == {"deliveries": []}
    await http.close()


async def test_consumers_outlast_a_server_without_a_journal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llama_deploy.message_queues.broker_connection")
    config = SimpleMessageQueueConfig(port=free_port())
    async with SimpleMessageQueue(config) as queue:
        first = SimpleMessageQueueServer(config)
        await first.start()
        async with await queue.subscribe("t", group="g") as subscription:
            receiving = asyncio.create_task(receive(subscription, 1))
            await queue.publish(QueueMessage(data={"number": 1}), "t")
            await receiving
            await eventually(lambda: is_settled(config, "t", "g"))
            receiving = asyncio.create_task(receive(subscription, 1))
            await first.close()
            async with SimpleMessageQueueServer(config) as second, second.local_queue() as local:
                # The new server knows nothing of the group until the consumer is back.
                await eventually(lambda: has_group(second.config, "t", "g"))
                await local.publish(QueueMessage(data={"number": 2}), "t")
                (message,) = await receiving
                assert message.data == {"number": 2}
                await subscription.close()
    assert [action for action in actions_of(caplog) if action] == ["queue_lost", "queue_back"]


async def test_a_killed_server_loses_nothing_that_it_accepted(tmp_path: Path) -> None:
    port, journal = free_port(), tmp_path / "queue.db"
    accepted: set[int] = set()
    enough = asyncio.Event()
    acked: set[int] = set()

    async def publish(queue: SimpleMessageQueue, numbers: range) -> None:
        for number in numbers:
            await queue.publish(QueueMessage(data={"number": number}), "t")
            accepted.add(number)
            if len(accepted) >= 200:
                enough.set()

    config = SimpleMessageQueueConfig(port=port, retry_seconds=DEADLINE)
    async with SimpleMessageQueue(config) as queue:
        async with server_process(port, journal) as process:
            subscription = await queue.subscribe("t")
            publishing = [
                asyncio.create_task(publish(queue, range(start, start + 100))) for start in range(0, 800, 100)
            ]
            async with asyncio.timeout(DEADLINE):
                await enough.wait()
            for delivery in await subscription.receive(50):  # unsettled when the server dies
                assert delivery.message.data["number"] not in acked
            process.kill()
            await process.wait()
        async with server_process(port, journal):
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*publishing)
            received: set[int] = set()
            async with asyncio.timeout(DEADLINE):
                while len(received) < 800:
                    for delivery in await subscription.receive(256):
                        received.add(delivery.message.data["number"])
                        await delivery.ack()
            await subscription.close()
    assert received == set(range(800)) == accepted


async def _publish(queue: AbstractMessageQueue, *numbers: int, topic: str = "t") -> None:
    for number in numbers:
        await queue.publish(QueueMessage(data={"number": number}), topic)


async def test_a_journal_restores_groups_order_and_what_is_unsettled(tmp_path: Path) -> None:
    config = SimpleMessageQueueConfig(journal_path=tmp_path / "folder" / "queue.db")
    async with await LocalMessageQueue.start(config) as queue:
        assert queue.durable
        await _publish(queue, 0)
        async with await queue.subscribe("t") as main, await queue.subscribe("t", group="late") as late:
            await _publish(queue, 1, 2, 3)
            assert len(await receive(main, 2)) == 2
            await main.receive(1)  # stays unsettled
            await receive(late, 2)
    async with (
        await LocalMessageQueue.start(config) as queue,
        await queue.subscribe("t") as main,
        await queue.subscribe("t", group="late") as late,
    ):
        await _publish(queue, 4)
        assert [message.data["number"] for message in await receive(main, 3)] == [2, 3, 4]
        assert [message.data["number"] for message in await receive(late, 2)] == [3, 4]
    async with await LocalMessageQueue.start(config) as queue, await queue.subscribe("t") as main:
        await _publish(queue, 5)
        assert [message.data["number"] for message in await receive(main, 1)] == [5]


async def test_dead_letters_and_dropped_topics_are_journalled(tmp_path: Path) -> None:
    config = SimpleMessageQueueConfig(journal_path=tmp_path / "queue.db", max_deliveries=1)
    host = await BrokerHost.start(config)
    async with LocalMessageQueue(host.broker, config) as queue:
        await queue.subscribe("short", expires_after=0.01)
        await _publish(queue, 1, topic="short")
        await _publish(queue, 2)
        async with await queue.subscribe("t") as subscription, asyncio.timeout(DEADLINE):
            (delivery,) = await subscription.receive(1)
            await delivery.nack()
            await eventually(lambda: "short" not in host.broker.depths())
    await host.close()
    host = await BrokerHost.start(config)
    counts = {name: depth.messages for name, depth in host.broker.depths().items()}
    await host.close()
    assert counts == {"t": 0, "t.dead_letters": 1}


async def test_a_journal_does_not_grow_with_what_is_settled(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    config = SimpleMessageQueueConfig(journal_path=path)
    sizes: list[int] = []
    for _ in range(4):
        async with await LocalMessageQueue.start(config) as queue, await queue.subscribe("t") as subscription:
            async with asyncio.TaskGroup() as group:
                for _ in range(500):
                    group.create_task(queue.publish(QueueMessage(data={"text": "x" * 20_000}), "t"))
            await receive(subscription, 500)
        sizes.append(path.stat().st_size)
    assert sizes[-1] <= sizes[0], "room is used again"
    assert sizes[-1] < 10_000_000, "and given back: 500 messages are 10 MB"
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM messages").fetchone() == (0,)
    connection.close()


async def test_a_journal_keeps_nothing_of_what_all_groups_have_settled(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with (
        await LocalMessageQueue.start(SimpleMessageQueueConfig(journal_path=path)) as queue,
        await queue.subscribe("t") as main,
        await queue.subscribe("t", group="late") as late,
    ):
        await _publish(queue, 1)
        (one,), (two,) = await asyncio.gather(main.receive(1), late.receive(1))
        # Both are written together, in this order.
        await one.ack()
        await two.ack()
    connection = sqlite3.connect(path)
    left = [connection.execute(f"SELECT count(*) FROM {name}").fetchone() for name in ("messages", "settled")]  # noqa: S608
    connection.close()
    assert left == [(0,), (0,)]


async def test_a_journal_serves_one_server_at_a_time(tmp_path: Path) -> None:
    config = SimpleMessageQueueConfig(port=0, journal_path=tmp_path / "queue.db")
    async with SimpleMessageQueueServer(config):
        with pytest.raises(ConfigError, match="another queue server uses it"):
            await SimpleMessageQueueServer(config).start()
    async with SimpleMessageQueueServer(config):
        pass


@pytest.mark.parametrize("content", [b"this is no database, and long enough to be seen as such" * 20, None])
async def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.db"
    if content is None:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE customers (name TEXT)")
        connection.close()
        content = b""
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"other\.db"):
        await SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0, journal_path=path)).start()
    assert path.read_bytes().startswith(content)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"known are: .*simple"):
        config_from_settings({"type": "pigeon"})
    with pytest.raises(ConfigError, match="simple"):
        config_from_settings({"host": "127.0.0.1"})
    with pytest.raises(ConfigError, match="port"):
        config_from_settings({"type": "simple", "port": "many"})
    with pytest.raises(ConfigError, match="colour"):
        config_from_settings({"type": "simple", "client_kwargs": {"colour": "red"}})


def test_settings_come_from_the_environment_and_show_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPLE_MESSAGE_QUEUE_PORT", "9999")
    config = SimpleMessageQueueConfig(client_kwargs={"headers": {"Authorization": "secret"}}, use_ssl=True)
    assert config.base_url == "https://127.0.0.1:9999"
    assert SimpleMessageQueue(config, port=9998).as_config().address == "https://127.0.0.1:9998"
    assert "secret" not in repr(config)
    assert "secret" not in str(config.public_settings())
