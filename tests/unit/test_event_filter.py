"""What a reader gets that wants some events only, and what several readers share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from llama_deploy.control_plane.streams.attempt_markers import StreamItem
from llama_deploy.control_plane.streams.event_filter import EventFilter, FilteredItem, Passed, filtered
from llama_deploy.control_plane.streams.shared_pages import SharedPages
from llama_deploy.errors import UnavailableError
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.types import NewAttempt

A = [EventRecord("t", n, "A" if n % 2 == 0 else "B", "{}") for n in range(6)]
END = EventRecord("t", 6, "StopEvent", "{}", terminal=True)
INTERNAL = EventRecord("t", 1, "StepStateChanged", "{}")
NEW = NewAttempt(attempt=2, position=3, repeats_from=1, reason="lost")


class Clock:
    def __init__(self, *times: float) -> None:
        self.times = list(times)

    def __call__(self) -> float:
        return self.times.pop(0) if len(self.times) > 1 else self.times[0]


async def read(
    groups: Sequence[list[StreamItem]], wanted: EventFilter, *times: float
) -> list[list[FilteredItem]]:
    async def stream() -> AsyncIterator[list[StreamItem]]:
        for group in groups:
            yield group

    return [items async for items in filtered(stream(), wanted, clock=Clock(*times or (0.0,)))]


async def test_a_reader_gets_the_classes_that_it_wants_and_the_terminal_event() -> None:
    wanted = EventFilter(frozenset({"A"}))
    assert await read([[*A], [END]], wanted) == [[A[0], A[2], A[4], Passed(5)], [END]]
    assert await read([[*A, END]], EventFilter(frozenset({"C"}))) == [[END]]


async def test_internal_events_come_on_request_only() -> None:
    assert await read([[A[0], INTERNAL, A[2]]], EventFilter()) == [[A[0], A[2]]]
    assert await read([[A[0], INTERNAL]], EventFilter(internal=True)) == [[A[0], INTERNAL]]
    assert await read([[A[0], INTERNAL]], EventFilter(frozenset({"StepStateChanged"}))) == [[INTERNAL]]
    assert await read([[A[0], INTERNAL]], EventFilter(frozenset({"A"}), internal=True)) == [[A[0], Passed(1)]]


async def test_a_reader_without_events_is_told_where_it_is_once_a_second() -> None:
    wanted = EventFilter(frozenset({"C"}))
    groups: list[list[StreamItem]] = [[event] for event in A[:4]]
    assert await read(groups, wanted, 0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0) == [[Passed(1)], [Passed(3)]]


async def test_an_idle_reader_is_told_where_it_is_with_the_keep_alive() -> None:
    wanted = EventFilter(frozenset({"C"}))
    assert await read([[], [*A], [], []], wanted) == [[], [Passed(5)], []]


async def test_new_attempts_are_told_whatever_a_reader_wants() -> None:
    assert await read([[A[1], NEW, A[3]]], EventFilter(frozenset({"A"}))) == [[NEW, Passed(3)]]


# -- shared pages


class Reads:
    """Answers reads in the order in which the test lets it."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[list[EventRecord]]] = []

    async def __call__(self) -> list[EventRecord]:
        answer: asyncio.Future[list[EventRecord]] = asyncio.get_running_loop().create_future()
        self.waiting.append(answer)
        return await answer


async def started(count: int, pages: SharedPages, reads: Reads) -> list[asyncio.Task[list[EventRecord]]]:
    tasks = [asyncio.create_task(pages.load(-1, reads)) for _ in range(count)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_readers_at_one_place_share_a_read() -> None:
    pages, reads = SharedPages(), Reads()
    tasks = await started(100, pages, reads)
    (answer,) = reads.waiting
    answer.set_result(A)
    assert all(page is A for page in await asyncio.gather(*tasks))
    assert await pages.load(-1, reads) is A


async def test_what_was_asked_for_before_a_stream_has_grown_is_not_shared_after_that() -> None:
    pages, reads = SharedPages(), Reads()
    (first,) = await started(1, pages, reads)
    pages.grown()
    (second,) = await started(1, pages, reads)
    before, after = reads.waiting
    after.set_result(A)
    before.set_result(A[:1])
    assert await first == A[:1]
    assert await second == A


async def test_a_reader_that_goes_away_does_not_disturb_the_others() -> None:
    pages, reads = SharedPages(), Reads()
    first, second = await started(2, pages, reads)
    first.cancel()
    await asyncio.wait([first])
    reads.waiting[0].set_result(A)
    assert await second is A


async def test_a_read_that_fails_or_finds_nothing_is_made_again() -> None:
    pages, reads = SharedPages(), Reads()
    (task,) = await started(1, pages, reads)
    reads.waiting[0].set_exception(UnavailableError("gone"))
    with pytest.raises(UnavailableError):
        await task
    (task,) = await started(1, pages, reads)
    reads.waiting[1].set_result([])
    assert await task == []
    await started(1, pages, reads)
    assert len(reads.waiting) == 3
    reads.waiting[2].set_result([])


async def test_large_pages_are_not_kept() -> None:
    pages, reads = SharedPages(), Reads()
    (task,) = await started(1, pages, reads)
    reads.waiting[0].set_result([EventRecord("t", 0, "A", "x" * 100_000)])
    await task
    await started(1, pages, reads)
    assert len(reads.waiting) == 2
    reads.waiting[1].set_result([])
