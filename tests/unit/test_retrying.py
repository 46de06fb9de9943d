"""Calls that are made again while they fail."""

from __future__ import annotations

import asyncio

import pytest

from llama_deploy.client.deadline import pause_after
from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import MAX_ASKED_SECONDS, Outage, retry
from llama_deploy.errors import LlamaDeployError, OverloadedError, ServerBusyError, UnavailableError
from llama_deploy.testing.conditions import eventually

QUICK = Backoff(first=0.001, longest=0.001)


class Place:
    """Where calls fail until they are let through, and what was told of it."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.let_through: set[str] = set()
        self.tries = 0
        self.outage = Outage(
            on_start=lambda error: self.told.append(str(error)), on_end=lambda: self.told.append("end")
        )

    async def once(self, name: str) -> str:
        self.tries += 1
        if name not in self.let_through:
            raise UnavailableError(name)
        return name

    async def call(self, name: str) -> str:
        return await retry(lambda: self.once(name), backoff=QUICK, outage=self.outage)


async def test_an_outage_of_many_calls_is_reported_once_and_ends_with_the_last() -> None:
    place = Place()
    one, two = (asyncio.create_task(place.call(name)) for name in ("one", "two"))
    await eventually(lambda: place.tries > 6)
    place.let_through.add("one")
    assert await one == "one"
    assert place.told == ["one"]
    place.let_through.add("two")
    assert await two == "two"
    assert place.told == ["one", "end"]


async def test_a_cancelled_call_does_not_report_a_recovery() -> None:
    place = Place()
    one = asyncio.create_task(place.call("one"))
    await eventually(lambda: place.tries > 3)
    one.cancel()
    await asyncio.wait({one})
    assert place.told == ["one"]
    two = asyncio.create_task(place.call("two"))
    await eventually(lambda: place.tries > 6)
    place.let_through.add("two")
    await two
    assert place.told == ["one", "end"]


async def test_a_call_that_succeeds_at_once_ends_an_outage_whose_calls_gave_up() -> None:
    place = Place()
    give_up_at = asyncio.get_running_loop().time() + 0.05
    with pytest.raises(UnavailableError):
        await retry(lambda: place.once("one"), backoff=QUICK, give_up_at=give_up_at, outage=place.outage)
    assert place.told == ["one"]
    place.let_through.add("two")
    assert await place.call("two") == "two"
    assert place.told == ["one", "end"]


async def test_a_permanent_error_is_raised_at_once() -> None:
    place = Place()

    async def refuse() -> None:
        raise LlamaDeployError("no")

    with pytest.raises(LlamaDeployError, match="no"):
        await retry(refuse, backoff=QUICK, outage=place.outage)
    assert place.told == []


async def test_the_last_error_is_raised_when_the_time_is_over() -> None:
    place = Place()
    give_up_at = asyncio.get_running_loop().time() + 0.05

    async def fail() -> None:
        place.tries += 1
        raise UnavailableError(f"try {place.tries}")

    with pytest.raises(UnavailableError) as caught:
        await retry(fail, backoff=QUICK, give_up_at=give_up_at, outage=place.outage)
    assert place.tries > 1
    assert str(caught.value) == f"try {place.tries}"
    assert place.told == ["try 1"]


@pytest.mark.parametrize(
    ("asked", "paused"),
    [(7.0, 7.0), (0.0, 0.001), (-5.0, 0.001), (1e9, MAX_ASKED_SECONDS), (float("nan"), 0.001), ("9", 0.001)],
)
async def test_the_other_side_may_ask_for_a_longer_pause_within_bounds(asked: float, paused: float) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    errors = [OverloadedError("full", retry_after=asked), ServerBusyError("busy", retry_after=asked)]
    rest = list(errors)

    async def call() -> str:
        if rest:
            raise rest.pop()
        return "done"

    assert await retry(call, backoff=QUICK, pause=pause) == "done"
    assert pauses == [paused, paused]
    assert [pause_after(1, error) for error in errors] == [max(0.1, paused)] * 2


async def test_a_pause_may_be_cut_short() -> None:
    place = Place()
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        place.let_through.add("one")

    assert await retry(lambda: place.once("one"), backoff=Backoff(60.0, longest=60.0), pause=pause) == "one"
    assert pauses == [60.0]


@pytest.mark.parametrize("raised", [None, UnavailableError("the connection was given up")])
async def test_a_cancellation_that_the_call_catches_is_not_lost(raised: UnavailableError | None) -> None:
    begun = asyncio.Event()

    async def call() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if raised is not None:
                raise raised from None

    retrying = asyncio.create_task(retry(call, backoff=QUICK))
    await begun.wait()
    retrying.cancel()
    await asyncio.wait({retrying}, timeout=5)
    assert retrying.cancelled()
