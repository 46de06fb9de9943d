"""Load makes the batches: an idle batcher flushes at once, a busy one gathers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from llama_deploy.concurrency.batching import Batcher
from llama_deploy.errors import ClosedError, OverloadedError, UnavailableError


class Gate:
    """A flush that waits until it is let through, and answers with the items doubled."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = asyncio.Event()
        self.open = asyncio.Event()

    async def flush(self, items: Sequence[int]) -> list[int | BaseException]:
        self.batches.append(list(items))
        self.entered.set()
        await self.open.wait()
        return [ValueError(str(item)) if item < 0 else item * 2 for item in items]


async def test_what_comes_during_a_flush_leaves_together() -> None:
    gate = Gate()
    batcher = Batcher(gate.flush, max_batch=3)
    futures = [batcher.submit_nowait(0)]
    await gate.entered.wait()
    futures += [batcher.submit_nowait(number) for number in range(1, 6)]
    gate.open.set()
    assert await asyncio.gather(*futures) == [0, 2, 4, 6, 8, 10]
    assert gate.batches == [[0], [1, 2, 3], [4, 5]]


async def test_each_submitter_gets_its_own_outcome() -> None:
    gate = Gate()
    gate.open.set()
    batcher = Batcher(gate.flush)
    good, bad = batcher.submit_nowait(1), batcher.submit_nowait(-1)
    assert await good == 2
    with pytest.raises(ValueError, match="-1"):
        await bad
    assert await batcher.submit(4) == 8


async def test_a_flush_that_raises_fails_its_batch_only() -> None:
    calls = 0

    async def flush(items: Sequence[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise UnavailableError("lost")
        return items

    batcher = Batcher(flush)
    with pytest.raises(UnavailableError):
        await batcher.submit(1)
    assert await batcher.submit(2) == 2


async def test_too_many_waiting_items_are_refused() -> None:
    gate = Gate()
    batcher = Batcher(gate.flush, max_waiting=2)
    first = batcher.submit_nowait(0)
    await gate.entered.wait()
    futures = [batcher.submit_nowait(1), batcher.submit_nowait(2)]
    with pytest.raises(OverloadedError):
        batcher.submit_nowait(3)
    gate.open.set()
    assert await asyncio.gather(first, *futures) == [0, 2, 4]


async def test_a_submitter_that_goes_away_disturbs_nobody() -> None:
    gate = Gate()
    batcher = Batcher(gate.flush)
    gone = asyncio.create_task(batcher.submit(1))
    stays = asyncio.create_task(batcher.submit(2))
    await gate.entered.wait()
    gone.cancel()
    gate.open.set()
    assert await stays == 4
    assert gone.cancelled()


async def test_close_flushes_what_waits_and_refuses_more() -> None:
    gate = Gate()
    gate.open.set()
    batcher = Batcher(gate.flush)
    future = batcher.submit_nowait(1)
    await batcher.close()
    await batcher.close()
    assert future.result() == 2
    with pytest.raises(ClosedError, match="open another of what owns it") as refused:
        await batcher.submit(2)
    assert not refused.value.retriable, "it stays closed"
