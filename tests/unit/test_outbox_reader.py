"""A control plane that starts publishes what is in its outbox without holding all of it in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from llama_deploy.backoff import Backoff
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


async def test_the_outbox_is_published_in_pages(queue: GatedQueue) -> None:
    async def on_refused(_: QueueMessage, error: Exception) -> None:
        raise AssertionError(error)

    messages = [QueueMessage() for _ in range(COUNT)]
    async with await SQLiteStateStore.connect("sqlite:///:memory:") as store:
        await store.transact(
            lambda tx: tx.outbox.insert(
                [OutboxRecord(message.id_, "topic", message.encode().decode()) for message in messages]
            )
        )
        writer = Writer(
            store,
            clock=lambda: NOW,
            topics=Topics("test"),
            pace=DispatchPace(unclaimed=Backoff(10, longest=60), lost=Backoff(1, longest=60)),
            after_commit=lambda _: None,
        )
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
        await writer.close()
