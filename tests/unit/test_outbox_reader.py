"""A control plane that starts publishes what is in its outbox without holding all of it in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.decisions.dispatch_rules import DispatchPace
from llama_deploy.control_plane.dispatch.outbox_reader import OutboxReader
from llama_deploy.control_plane.dispatch.outbox_relay import OutboxRelay
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


class GatedQueue(LocalMessageQueue):
    """Publishes messages while its gate is open."""

    gate: asyncio.Event
    published: list[str]

    async def _publish(self, message: QueueMessage, topic: str) -> None:  # noqa: ARG002
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


async def fill(store: SQLiteStateStore, messages: Sequence[tuple[str, str]]) -> None:
    await store.transact(
        lambda tx: tx.outbox.insert([OutboxRecord(key, "topic", text) for key, text in messages])
    )


async def test_the_outbox_is_published_in_pages(
    queue: GatedQueue, store: SQLiteStateStore, writer: Writer
) -> None:
    messages = [QueueMessage() for _ in range(COUNT)]
    await fill(store, [(message.id_, message.encode().decode()) for message in messages])
    held = []

    def on_sent(message_ids: object) -> None:
        held.append(relay.backlog)

    relay = OutboxRelay(queue, on_sent=on_sent, on_refused=on_refused)
    reader = OutboxReader(store=store, writer=writer, relay=relay, clock=lambda: NOW)
    resending = asyncio.create_task(reader.resend_rest(await reader.resend_page()))
    await eventually(lambda: not relay.has_room)
    assert relay.backlog <= MAX_HELD
    assert not resending.done()
    queue.gate.set()
    await resending
    await eventually(lambda: relay.backlog == 0)
    assert max(held) <= MAX_HELD
    assert queue.published == [message.id_ for message in messages]
    await relay.close()


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
