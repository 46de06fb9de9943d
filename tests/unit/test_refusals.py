"""Which refusals of a queue are the message's own fault, and what becomes of the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

import pytest

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.dispatch import outbox_relay
from llama_deploy.control_plane.dispatch.outbox_relay import OutboxRelay
from llama_deploy.control_plane.storage.outgoing import Outgoing
from llama_deploy.errors import (
    ClosedError,
    ConfigError,
    InvalidRequestError,
    LlamaDeployError,
    PayloadTooLargeError,
    QueueFullError,
    SerializationError,
    TopicNotFoundError,
    UnavailableError,
)
from llama_deploy.message_queues import LocalMessageQueue, broker_connection
from llama_deploy.message_queues.base import is_refused_for_good
from llama_deploy.message_queues.broker_connection import BrokerConnection
from llama_deploy.messages import QueueMessage
from llama_deploy.services.worker import report_publisher
from llama_deploy.services.worker.report_publisher import ReportPublisher
from llama_deploy.testing.conditions import eventually

FINAL = [
    PayloadTooLargeError("large"),
    InvalidRequestError("no name of a topic"),
    SerializationError("no JSON"),
]
PASSING = [
    ConfigError("wrong password"),
    UnavailableError("away"),
    QueueFullError("full"),
    TopicNotFoundError("expired"),
    LlamaDeployError("some backend's own"),
]
QUICK = Backoff(first=0.001, longest=0.001)


class Moody(LocalMessageQueue):
    """Raises what it is told to, then takes messages."""

    refusals: Sequence[Exception] = ()
    taken: Sequence[str] = ()

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        if self.refusals:
            first, *self.refusals = self.refusals
            raise first
        await super()._publish(message, topic)
        self.taken = [*self.taken, message.id_]


@pytest.fixture
async def queue() -> AsyncIterator[Moody]:
    async with await Moody.start() as queue:
        yield queue


@pytest.mark.parametrize("error", [*FINAL, *PASSING, ClosedError("closed"), asyncio.CancelledError(), None])
def test_only_the_message_itself_is_refused_for_good(error: BaseException | None) -> None:
    assert is_refused_for_good(error) == (error in FINAL)


@pytest.mark.parametrize("error", PASSING)
async def test_the_relay_waits_out_what_passes(
    queue: Moody, error: LlamaDeployError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox_relay, "_BACKOFF", QUICK)
    caplog.set_level(logging.INFO)
    queue.refusals = [error] * 7
    sent: list[str] = []

    async def on_refused(_: QueueMessage, exc: LlamaDeployError) -> None:
        raise AssertionError(exc)

    relay = OutboxRelay(queue, on_sent=sent.extend, on_refused=on_refused)
    messages = [QueueMessage() for _ in range(3)]
    relay.send([Outgoing.of("topic", message) for message in messages])
    await eventually(lambda: relay.backlog == 0)
    assert queue.taken == sent
    assert sorted(sent) == sorted(message.id_ for message in messages)
    told = [record.getMessage() for record in caplog.records]
    assert [text for text in told if "does not accept messages" in text and str(error) in text] == told[:1]
    assert told[1:] == ["topic topic accepts messages again"]
    await relay.close()


@pytest.mark.parametrize("error", FINAL)
async def test_the_relay_gives_up_what_can_never_be_sent(queue: Moody, error: LlamaDeployError) -> None:
    queue.refusals = [error]
    sent: list[str] = []
    refused: list[tuple[str, LlamaDeployError]] = []

    async def on_refused(message: QueueMessage, exc: LlamaDeployError) -> None:
        refused.append((message.id_, exc))

    relay = OutboxRelay(queue, on_sent=sent.extend, on_refused=on_refused)
    message = QueueMessage()
    relay.send([Outgoing.of("topic", message)])
    await eventually(lambda: relay.backlog == 0)
    assert (refused, sent) == ([(message.id_, error)], [message.id_])
    await relay.close()


async def test_the_relay_ends_when_the_queue_is_closed(queue: Moody) -> None:
    queue.refusals = [ClosedError("closed")]
    relay = OutboxRelay(queue, on_sent=lambda _: None, on_refused=never_refused)
    relay.send([Outgoing.of("topic", QueueMessage())])
    with pytest.raises(ClosedError):
        await relay.run()
    assert not queue.taken
    await relay.close()


async def test_a_closed_relay_leaves_messages_in_the_outbox(queue: Moody) -> None:
    relay = OutboxRelay(queue, on_sent=lambda _: None, on_refused=never_refused)
    await relay.close()
    tasks = asyncio.all_tasks()
    relay.send([Outgoing.of("topic", QueueMessage())])
    assert asyncio.all_tasks() == tasks
    assert relay.backlog == 0


async def never_refused(message: QueueMessage, error: LlamaDeployError) -> None:
    raise AssertionError(message, error)


async def never(message: QueueMessage) -> None:
    raise AssertionError(message)


@pytest.mark.parametrize("error", PASSING)
async def test_reports_wait_out_what_passes(
    queue: Moody, error: LlamaDeployError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(report_publisher, "_BACKOFF", QUICK)
    caplog.set_level(logging.INFO)
    queue.refusals = [error] * 9
    reports = ReportPublisher(lambda message: queue.publish(message, "topic"), upload=never)
    messages = [QueueMessage() for _ in range(3)]
    await asyncio.gather(*(reports.publish(message) for message in messages))
    assert sorted(queue.taken) == sorted(message.id_ for message in messages)
    warning, info = (record.getMessage() for record in caplog.records)
    assert str(error) in warning
    assert info == "the queue accepts reports again"


@pytest.mark.parametrize("error", [*FINAL, ClosedError("closed")])
async def test_a_report_that_can_never_be_sent_is_told_to_its_sender(
    queue: Moody, error: LlamaDeployError
) -> None:
    async def refuse(message: QueueMessage) -> None:
        raise error

    queue.refusals = [error]
    with pytest.raises(type(error)):
        await ReportPublisher(lambda message: queue.publish(message, "topic"), upload=refuse).publish(
            QueueMessage()
        )
    assert not queue.taken


async def test_denied_access_is_retried_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(broker_connection, "_DENIED_BACKOFF", QUICK)
    monkeypatch.setattr(broker_connection, "_BACKOFF", QUICK)
    caplog.set_level(logging.INFO)
    broker = BrokerConnection("the broker", retry_seconds=0.1)
    failures = [*[ConfigError("no")] * 4, UnavailableError("away"), ConfigError("no")]

    async def read() -> str:
        if failures:
            raise failures.pop(0)
        return "read"

    async def read_freely() -> str:
        return "free"

    answers = await asyncio.gather(*(broker.retry_forever(call) for call in (read, read, read_freely)))
    assert answers == ["read", "read", "free"]
    told = [record.getMessage() for record in caplog.records]
    assert sorted(told) == [
        "the broker denies access that it has granted before; retrying: no",
        "the broker grants access again",
        "the broker is back",
        "the message queue is lost: away",
    ]
    failures[:] = [UnavailableError("away"), ConfigError("no")]
    with pytest.raises(ConfigError):
        await broker.retry_forever(read, was_granted=lambda: False)
    with pytest.raises(TopicNotFoundError):
        await broker.retry_forever(_find_nothing)


async def _find_nothing() -> None:
    raise TopicNotFoundError("none")
