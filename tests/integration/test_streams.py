"""Reading a task's stream while it grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from llama_deploy.control_plane.streams.stream_hub import StreamHub, follow
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.records import NOW, a_task
from llama_deploy.types import TaskStatus

T = TypeVar("T")


class EndingStore(SQLiteStateStore):
    """The task ends right after somebody has found no events of it."""

    has_ended = False

    async def read(self, work: Callable[[StoreTransaction], T]) -> T:
        found = await super().read(work)
        if found == [] and not self.has_ended:
            self.has_ended = True
            await self.transact(self._end)
        return found

    @staticmethod
    def _end(tx: StoreTransaction) -> None:
        tx.events.insert([EventRecord("t1", n, "Number", "{}", terminal=n == 2) for n in range(3)])
        ended = a_task(status=TaskStatus.SUCCEEDED)
        tx.tasks.update([ended._replace(stream_length=3, finished_at=NOW, result="{}")])


async def test_events_that_come_with_the_end_while_a_reader_looks_are_read() -> None:
    async with await EndingStore.connect("sqlite:///:memory:") as store:
        await store.transact(lambda tx: tx.tasks.insert([a_task()]))
        groups = [group async for group in follow(store, StreamHub(), "t1")]
    assert [event.position for group in groups for event in group] == [0, 1, 2]
