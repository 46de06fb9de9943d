"""A control plane that starts publishes what is in its outbox without holding all of it in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import pytest

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.decisions.dispatch_rules import DispatchPace
from llama_deploy.control_plane.dispatch import outbox_relay
from llama_deploy.control_plane.dispatch.outbox_reader import OutboxReader
from llama_deploy.control_plane.dispatch.outbox_relay import MAX_HELD_BYTES, OutboxRelay
from llama_deploy.control_plane.storage.outgoing import Outgoing
from llama_deploy.control_plane.storage.writer import Writer
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.messages import QueueMessage
from llama_deploy.state_stores.records import OutboxRecord
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.records import NOW
from llama_deploy.types.topics import Topics

COUNT = 2_600
MAX_HELD = 1_500
MAX_BATCH = 256
PAGE = 500


class GatedQueue(LocalMessageQueue):
    """Publishes messages while its gate is open, those for the topic `open` always."""

    gate: asyncio.Event
    published: list[str]

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        if topic != "open":
            await self.gate.wait()
        self.published.append(message.id_)


@pytest.fixture
async def queue() -> AsyncIterator[GatedQueue]:
    async with await GatedQueue.start() as queue:
        queue.gate, queue.published = asyncio.Event(), []
        yield queue


async def on_refused(_: QueueMessage, error: Exception) -> None:
    raise AssertionError(error)


@pytest.fixture
async def store() -> AsyncIterator[SQLiteStateStore]:
    async with await SQLiteStateStore.connect("sqlite:///:memory:") as store:
        yield store


@pytest.fixture
async def writer(store: SQLiteStateStore) -> AsyncIterator[Writer]:
    writer = Writer(
        store,
        clock=lambda: NOW,
        topics=Topics("test"),
        pace=DispatchPace(unclaimed=Backoff(10, longest=60), lost=Backoff(1, longest=60)),
        after_commit=lambda _: None,
    )
    yield writer
    await writer.close()


async def fill(
    store: SQLiteStateStore, messages: Sequence[tuple[str, str]], topic: str = "topic", **fields: Any
) -> None:
    await store.transact(
        lambda tx: tx.outbox.insert([OutboxRecord(key, topic, text, **fields) for key, text in messages])
    )


def encoded(messages: Sequence[QueueMessage]) -> list[tuple[str, str]]:
    return [(message.id_, message.encode().decode()) for message in messages]


class Parts(NamedTuple):
    """A relay and its reader."""

    relay: OutboxRelay
    reader: OutboxReader
    held: list[int]
    """How many messages were in memory each time some were published."""


@pytest.fixture
def max_held() -> int:
    return 1000


@pytest.fixture
async def parts(
    queue: GatedQueue, store: SQLiteStateStore, writer: Writer, max_held: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Parts]:
    monkeypatch.setattr(outbox_relay, "MAX_HELD", max_held)
    held: list[int] = []

    def on_sent(message_ids: Sequence[str]) -> None:
        held.append(relay.backlog)
        writer.forget_sent(message_ids)

    relay = OutboxRelay(queue, on_sent=on_sent, on_refused=on_refused)
    reader = OutboxReader(store=store, writer=writer, relay=relay, clock=lambda: NOW)
    reading = asyncio.create_task(reader.read_on())
    yield Parts(relay, reader, held)
    reading.cancel()
    await asyncio.wait([reading])
    await relay.close()


async def resend(reader: OutboxReader) -> None:
    await reader.resend_rest(await reader.resend_page())


def large(topic: str, count: int) -> list[Outgoing]:
    return [Outgoing.of(topic, QueueMessage(data={"text": "x" * 100_000})) for _ in range(count)]


async def test_the_messages_of_a_topic_are_bounded_in_bytes(queue: GatedQueue, parts: Parts) -> None:
    messages = large("topic", 200)
    parts.relay.send(messages)
    assert parts.relay.backlog == 1 + MAX_HELD_BYTES // messages[0].size
    assert parts.relay.full_topics() == ["topic"]
    assert parts.relay.count("topic") == 200
    queue.gate.set()
    await eventually(lambda: parts.relay.backlog == 0)
    parts.relay.send(messages[:3])
    await eventually(lambda: not parts.relay.is_waiting("topic"))


async def test_the_messages_of_all_topics_are_bounded_in_bytes(
    queue: GatedQueue, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = large("topic", 1)[0].size
    monkeypatch.setattr(outbox_relay, "MAX_ALL_BYTES", 50 * size)
    for n in range(60):
        parts.relay.send(large(f"topic-{n}", 5))
    # Ten topics have used up the room, and each of the others holds one message.
    assert parts.relay.backlog == 10 * 5 + 50
    assert len(parts.relay.full_topics()) == 60
    queue.gate.set()
    await eventually(lambda: parts.relay.backlog == 0)
    assert len(queue.published) == 100


@pytest.mark.parametrize("max_held", [1000, 2 * PAGE - MAX_BATCH])  # the latter are full after two pages
async def test_the_outbox_is_published_in_pages(
    queue: GatedQueue, store: SQLiteStateStore, parts: Parts
) -> None:
    messages = [QueueMessage() for _ in range(COUNT)]
    await fill(store, encoded(messages))
    await resend(parts.reader)
    assert parts.relay.backlog <= MAX_HELD
    queue.gate.set()
    await eventually(lambda: len(queue.published) == COUNT)
    assert max(parts.held) <= MAX_HELD
    assert queue.published == [message.id_ for message in messages]


async def test_a_topic_that_accepts_nothing_does_not_block_the_others_at_the_start(
    queue: GatedQueue, store: SQLiteStateStore, parts: Parts
) -> None:
    await fill(store, encoded([QueueMessage() for _ in range(COUNT)]))
    other = QueueMessage()
    await fill(store, encoded([other]), "open")
    async with asyncio.timeout(20):
        await resend(parts.reader)
    await eventually(lambda: queue.published == [other.id_])


async def test_what_is_sent_to_such_a_topic_waits_in_the_outbox_and_keeps_its_order(
    queue: GatedQueue, store: SQLiteStateStore, parts: Parts
) -> None:
    messages = [QueueMessage() for _ in range(COUNT)]
    for start in range(0, COUNT, 100):
        page = messages[start : start + 100]
        await fill(store, encoded(page))
        parts.relay.send([Outgoing.of("topic", message) for message in page])
    assert parts.relay.backlog <= MAX_HELD
    assert COUNT - MAX_BATCH <= parts.relay.count("topic") <= COUNT
    queue.gate.set()
    await eventually(lambda: len(queue.published) >= COUNT)
    assert queue.published == [message.id_ for message in messages]
    await eventually(lambda: not parts.relay.is_waiting("topic"))


async def test_messages_of_other_control_planes_are_taken_over_past_such_a_topic(
    queue: GatedQueue, store: SQLiteStateStore, parts: Parts
) -> None:
    await fill(store, encoded([QueueMessage() for _ in range(COUNT)]), relay_at=NOW)
    other = QueueMessage()
    await fill(store, encoded([other]), "open", relay_at=NOW)
    taking = asyncio.create_task(parts.reader.take_over())
    await eventually(lambda: queue.published == [other.id_], seconds=30)
    assert parts.relay.backlog <= MAX_HELD
    taking.cancel()
    await asyncio.wait([taking])


async def test_messages_that_cannot_be_read_stay_and_do_not_block_the_others(
    queue: GatedQueue, store: SQLiteStateStore, writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    newer = [(f"newer-{number}", '{"v": 2}') for number in range(600)]
    message = QueueMessage()
    await fill(store, [*newer, (message.id_, message.encode().decode())])
    queue.gate.set()
    relay = OutboxRelay(queue, on_sent=writer.forget_sent, on_refused=on_refused)
    reader = OutboxReader(store=store, writer=writer, relay=relay, clock=lambda: NOW)
    for _ in range(2):
        await reader.resend_rest(await reader.resend_page())
        await eventually(lambda: relay.backlog == 0)
        await writer.flush_sent()

    assert queue.published == [message.id_]
    left = await store.read(lambda tx: tx.outbox.load(after=0, limit=1000))
    assert [row.message_id for row in left.values()] == [key for key, _ in newer]
    logged = [record for record in caplog.records if "newer-0 " in record.getMessage()]
    assert len(logged) == 1
    await relay.close()
