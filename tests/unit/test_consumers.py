"""Consumers and publishers."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response

from llama_deploy.errors import ConfigError, LlamaDeployError, QueueFullError, UnavailableError
from llama_deploy.message_consumers import (
    BaseMessageQueueConsumer,
    CallableMessageConsumer,
    RemoteMessageConsumer,
)
from llama_deploy.message_publishers import MessageQueuePublisherMixin
from llama_deploy.message_queues import (
    AbstractMessageQueue,
    Delivery,
    LocalMessageQueue,
    PublishCallback,
    SimpleMessageQueueConfig,
    Subscription,
)
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import free_port
from llama_deploy.web.application import create_app
from llama_deploy.web.http_server import HttpServer


@pytest.fixture
async def queue() -> AsyncIterator[LocalMessageQueue]:
    async with await LocalMessageQueue.start() as queue:
        yield queue


def test_the_base_is_abstract() -> None:
    with pytest.raises(TypeError):
        BaseMessageQueueConsumer()  # type: ignore[abstract]


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_callable_consumer_calls_its_handler(*, asynchronous: bool) -> None:
    seen: list[QueueMessage] = []

    def handle(message: QueueMessage) -> str:
        seen.append(message)
        return "done"

    async def handle_async(message: QueueMessage) -> str:
        return handle(message)

    consumer = CallableMessageConsumer(handler=handle_async if asynchronous else handle)
    message = QueueMessage()
    assert await consumer.process_message(message) == "done"
    assert seen == [message]
    assert message.stats.process_start_time is not None
    assert message.stats.process_end_time is not None
    assert message.stats.process_start_time <= message.stats.process_end_time


async def test_a_message_of_another_type_is_refused() -> None:
    consumer = CallableMessageConsumer(handler=print, message_type="mine")
    with pytest.raises(ValueError, match="'mine'"):
        await consumer.process_message(QueueMessage(type="yours"))


async def test_an_unregistered_consumer_says_so() -> None:
    with pytest.raises(ConfigError):
        await CallableMessageConsumer(handler=print).start_consuming()


async def test_a_registered_consumer_consumes_until_it_is_deregistered(queue: LocalMessageQueue) -> None:
    seen: asyncio.Queue[QueueMessage] = asyncio.Queue()
    consumer = CallableMessageConsumer(handler=seen.put)
    consumer.consuming_callable = await queue.register_consumer(consumer, "t")
    consuming = asyncio.create_task(consumer.start_consuming())
    await queue.publish(QueueMessage(data={"number": 1}), "t")
    async with asyncio.timeout(30):
        assert (await seen.get()).data == {"number": 1}
        await queue.deregister_consumer(consumer)
        await consuming


async def test_an_error_ends_consuming_where_that_is_asked_for() -> None:
    def fail(_message: QueueMessage) -> None:
        raise KeyError("on purpose")

    async with await LocalMessageQueue.start(SimpleMessageQueueConfig(raise_exceptions=True)) as queue:
        consumer = CallableMessageConsumer(handler=fail)
        start_consuming = await queue.register_consumer(consumer, "t")
        await queue.publish(QueueMessage(), "t")
        with pytest.raises(KeyError, match="on purpose"):
            await asyncio.wait_for(start_consuming(), 30)
        async with await queue.subscribe("t") as subscription, asyncio.timeout(30):
            (delivery,) = await subscription.receive(1)
        assert delivery.attempt == 2


class SlowDelivery(Delivery):
    """A delivery whose extension can fail, or last."""

    def __init__(self, *, failures: int = 0, extension_lasts: bool = False) -> None:
        super().__init__(QueueMessage(), attempt=1)
        self.extended = asyncio.Event()
        self.log: list[str] = []
        self._failures = failures
        self._extension_lasts = extension_lasts

    async def _ack(self) -> None:
        self.log.append("ack")

    async def _nack(self, delay: float) -> None:
        self.log.append(f"nack {delay}")

    async def _extend(self, seconds: float) -> None:
        if self._failures:
            self._failures -= 1
            raise UnavailableError(f"no {seconds} seconds today")
        self.extended.set()
        if self._extension_lasts:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                self.log.append("extension ended")


class OneDeliverySubscription(Subscription):
    """Gives one delivery, and then nothing."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__("t", visibility_timeout=0.03)
        self._deliveries = [delivery]

    async def _receive(self, max_messages: int) -> list[Delivery]:
        if not self._deliveries:
            await asyncio.Event().wait()
        return [self._deliveries.pop() for _ in range(min(max_messages, 1))]

    async def _close(self) -> None:
        pass


class OneDeliveryQueue(AbstractMessageQueue):
    """Has one delivery."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(SimpleMessageQueueConfig())
        self._delivery = delivery

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        raise QueueFullError(f"{topic} takes no {message.id_}")

    async def _subscribe(
        self,
        topic: str,  # noqa: ARG002
        *,
        group: str,  # noqa: ARG002
        expires_after: float | None,  # noqa: ARG002
    ) -> Subscription:
        return OneDeliverySubscription(self._delivery)

    async def _disconnect(self) -> None:
        pass


async def _consume_until_extended(delivery: SlowDelivery) -> None:
    async def work_until_extended(_message: QueueMessage) -> None:
        await delivery.extended.wait()

    queue = OneDeliveryQueue(delivery)
    consumer = CallableMessageConsumer(handler=work_until_extended)
    start_consuming = await queue.register_consumer(consumer, "t")
    consuming = asyncio.create_task(start_consuming())
    async with asyncio.timeout(30):
        await delivery.extended.wait()
        await queue.deregister_consumer(consumer)
        await consuming


async def test_an_extension_that_fails_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    delivery = SlowDelivery(failures=2)
    await _consume_until_extended(delivery)
    assert delivery.log == ["ack"]
    assert [record.getMessage().count("seconds today") for record in caplog.records] == [1, 1]


async def test_no_extension_is_under_way_when_a_delivery_is_settled() -> None:
    delivery = SlowDelivery(extension_lasts=True)
    await _consume_until_extended(delivery)
    assert delivery.log == ["extension ended", "ack"]


async def test_a_message_that_the_queue_refuses_is_not_called_back() -> None:
    called: list[QueueMessage] = []
    queue = OneDeliveryQueue(SlowDelivery())
    with pytest.raises(QueueFullError):
        await queue.publish(QueueMessage(), "t", callback=lambda message, **_: called.append(message))
    assert called == []


class Receiver:
    """A server that takes messages, or refuses them with a status."""

    def __init__(self) -> None:
        self.status = 200
        self.received: list[QueueMessage] = []
        self.connections: set[tuple[str, int]] = set()
        self.headers: list[str | None] = []

    async def process(self, request: Request) -> Response:
        assert request.client is not None
        self.connections.add((request.client.host, request.client.port))
        self.headers.append(request.headers.get("x-key"))
        self.received.append(QueueMessage.decode(await request.body()))
        # What is found at the end of the redirection would look like an acknowledgement.
        return Response(status_code=self.status, headers={"Location": "/openapi.json"})

    async def refuse(self) -> None:
        raise QueueFullError("no room", retry_after=2.5)

    def app(self) -> FastAPI:
        app = create_app(title="receiver")
        app.post("/process_message")(self.process)
        app.post("/refuse")(self.refuse)
        return app


async def test_a_remote_consumer_posts_over_one_connection() -> None:
    receiver = Receiver()
    async with await HttpServer.start(receiver.app(), host="127.0.0.1", port=0) as server:
        url = f"http://127.0.0.1:{server.port}/process_message"
        consumer = RemoteMessageConsumer(url=url, client_kwargs={"headers": {"x-key": "k"}, "timeout": 5})
        messages = [QueueMessage(data={"number": number}) for number in range(3)]
        for message in messages:
            await consumer.process_message(message)
        await consumer.close()
        await consumer.close()
    assert [message.data for message in receiver.received] == [message.data for message in messages]
    assert receiver.headers == ["k"] * 3
    assert len(receiver.connections) == 1


@pytest.mark.parametrize("status", [302, 304, 404, 500])
async def test_a_remote_consumer_raises_what_is_not_accepted(status: int) -> None:
    receiver = Receiver()
    receiver.status = status
    async with await HttpServer.start(receiver.app(), host="127.0.0.1", port=0) as server:
        consumer = RemoteMessageConsumer(url=f"http://127.0.0.1:{server.port}/process_message")
        with pytest.raises(LlamaDeployError):
            await consumer.process_message(QueueMessage())
        refused = RemoteMessageConsumer(url=f"http://127.0.0.1:{server.port}/refuse")
        with pytest.raises(QueueFullError) as caught:
            await refused.process_message(QueueMessage())
        assert caught.value.retry_after == 2.5
        await consumer.close()
        await refused.close()
    with pytest.raises(UnavailableError):
        await consumer.process_message(QueueMessage())
    await consumer.close()


@pytest.mark.parametrize("status", [None, 302, 404, 503])
async def test_a_remote_consumer_shows_no_credentials_of_its_url(
    queue: LocalMessageQueue, caplog: pytest.LogCaptureFixture, status: int | None
) -> None:
    receiver = Receiver()
    receiver.status = status or 200
    async with await HttpServer.start(receiver.app(), host="127.0.0.1", port=0) as server:
        port = server.port if status else free_port()
        consumer = RemoteMessageConsumer(url=f"http://127.0.0.1:{port}/process_message?token=s3cret")
        with caplog.at_level(logging.DEBUG):
            consuming = asyncio.create_task(
                consumer.start_consuming(await queue.register_consumer(consumer, "t"))
            )
            await queue.publish(QueueMessage(), "t")
            await eventually(lambda: "failed on message" in caplog.text)
            await queue.deregister_consumer(consumer)
            await consuming
        with pytest.raises(LlamaDeployError, match=f"http://127.0.0.1:{port}") as caught:
            await consumer.process_message(QueueMessage())
        await consumer.close()
    shown = [repr(consumer), str(consumer), caplog.text, *traceback.format_exception(caught.value)]
    assert "s3cret" not in "".join(shown)
    assert f"http://127.0.0.1:{port}/process_message" in repr(consumer)


@pytest.mark.parametrize(
    "url",
    [
        "http://ann:s3cret@127.0.0.1:123456/process_message",
        "http://127.0.0.1:123456/process_message?token=s3cret",
        "http://[::1/process_message?token=s3cret",
        "http://.host/process_message?token=s3cret",
        "http://a\\b/process_message?token=s3cret",
        "ftp://127.0.0.1/process_message?token=s3cret",
        b"http://127.0.0.1/process_message?token=s3cret\xff",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_it(url: Any) -> None:
    with pytest.raises(ValueError, match=r"url|URL") as caught:
        RemoteMessageConsumer(url=url)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_credentials_in_a_url_are_not_shown() -> None:
    consumer = RemoteMessageConsumer(url="http://ann:s3cret@127.0.0.1:1/process_message")
    assert "127.0.0.1:1" in repr(consumer)
    assert "s3cret" not in repr(consumer) + str(consumer)


class Publisher(MessageQueuePublisherMixin):
    def __init__(self, queue: AbstractMessageQueue) -> None:
        self._queue = queue
        self.published: list[tuple[QueueMessage, dict[str, Any]]] = []

    @property
    def publisher_id(self) -> str:
        return "publisher-1"

    @property
    def message_queue(self) -> AbstractMessageQueue:
        return self._queue

    @property
    def publish_callback(self) -> PublishCallback | None:
        return self._note

    def get_topic(self, msg_type: str) -> str:
        return f"namespace.{msg_type}"

    def _note(self, message: QueueMessage, **kwargs: Any) -> None:
        self.published.append((message, kwargs))


@pytest.mark.parametrize(("kwargs", "topic"), [({}, "namespace.work"), ({"topic": "other"}, "other")])
async def test_a_publisher_signs_dates_and_addresses(
    queue: LocalMessageQueue, kwargs: dict[str, str], topic: str
) -> None:
    publisher = Publisher(queue)
    message = QueueMessage(type="work")
    message.stats.publish_time = None
    await publisher.publish(message, **kwargs, reason="test")
    async with await queue.subscribe(topic) as subscription, asyncio.timeout(30):
        (delivery,) = await subscription.receive(1)
    assert delivery.message.publisher_id == "publisher-1"
    assert delivery.message.stats.publish_time is not None
    assert publisher.published == [(message, {"reason": "test"})]
