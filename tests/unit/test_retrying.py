"""Calls that are made again while they fail."""

from __future__ import annotations

import asyncio

import pytest

from llama_deploy.backoff import Backoff
from llama_deploy.errors import LlamaDeployError, UnavailableError
from llama_deploy.retrying import Retrying
from llama_deploy.testing.conditions import eventually

QUICK = Backoff(first=0.001, longest=0.001)


class Place:
    """Where calls fail until they are let through, and what was told of it."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.let_through: set[str] = set()
        self.tries = 0
        self.retrying = Retrying(QUICK, on_failure=self._note, on_end=lambda: self.told.append("end"))

    def _note(self, error: LlamaDeployError, is_news: bool) -> None:  # noqa: FBT001 - called by `Retrying`
        if is_news:
            self.told.append(str(error))

    async def call(self, name: str) -> str:
        async def attempt() -> str:
            self.tries += 1
            if name not in self.let_through:
                raise UnavailableError(name)
            return name

        return await self.retrying.run(attempt, passes=lambda error: error.retriable)


async def test_the_trouble_of_many_is_told_of_once_and_ends_with_the_last() -> None:
    place = Place()
    one, two = (asyncio.create_task(place.call(name)) for name in ("one", "two"))
    await eventually(lambda: place.tries > 6)
    place.let_through.add("one")
    assert await one == "one"
    assert place.told == ["one"]
    place.let_through.add("two")
    assert await two == "two"
    assert place.told == ["one", "end"]


async def test_who_is_cancelled_does_not_tell_that_it_is_over_nor_stand_in_the_way() -> None:
    place = Place()
    one = asyncio.create_task(place.call("one"))
    await eventually(lambda: place.tries > 3)
    one.cancel()
    await asyncio.wait({one})
    assert place.told == ["one"]
    two = asyncio.create_task(place.call("two"))
    await eventually(lambda: len(place.told) > 1)
    place.let_through.add("two")
    await two
    assert place.told == ["one", "two", "end"]


async def test_what_does_not_pass_is_raised() -> None:
    place = Place()

    async def refuse() -> None:
        raise LlamaDeployError("no")

    with pytest.raises(LlamaDeployError, match="no"):
        await place.retrying.run(refuse, passes=lambda error: error.retriable)
    assert place.told == []
