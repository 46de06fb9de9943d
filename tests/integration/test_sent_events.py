"""A step that sends events, and begins again in the middle of that."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy.services.run.journal import journal_backlog as journal
from llama_deploy.testing.conditions import eventually
from tests.integration.in_process import Stack, result_of, running_stack

ITEMS = 6


class Item(Event):
    number: int


class Done(Event):
    number: int


class Split(Workflow):
    """Sends items in some order, and stands still when so many have left."""

    def __init__(self, order: Sequence[int], *, stands_after: int = ITEMS) -> None:
        super().__init__(timeout=None)
        self.stands = asyncio.Event()
        self.worked_on: list[int] = []
        self._order = order
        self._stands_after = stands_after

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Item | None:
        for count, number in enumerate(self._order):
            if count == self._stands_after:
                self.stands.set()
                await asyncio.Event().wait()
            ctx.send_event(Item(number=number))
            await asyncio.sleep(0)
        return None

    @step
    async def work(self, ev: Item) -> Done:
        self.worked_on.append(ev.number)
        return Done(number=ev.number)

    @step
    async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
        every = ctx.collect_events(ev, [Done] * ITEMS)
        return None if every is None else StopEvent(result=sorted(each.number for each in every))


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def test_what_a_step_had_sent_it_does_not_send_again(stack: Stack) -> None:
    in_turn = range(ITEMS)
    first, second, third = Split(in_turn, stands_after=4), Split(in_turn, stands_after=2), Split(in_turn)
    async with stack.serving(stack.service(first, drain_timeout=0)):
        task_id = await stack.submit()
        await eventually(lambda: len(first.worked_on) == 4)
    async with stack.serving(stack.service(second, drain_timeout=0)):
        await second.stands.wait()
    async with stack.serving(stack.service(third)):
        assert result_of(await stack.end(task_id)) == list(range(ITEMS))
    assert [each.worked_on for each in (first, second, third)] == [[0, 1, 2, 3], [], [4, 5]]


async def test_it_may_send_in_another_order_when_it_begins_again(stack: Stack) -> None:
    first, second = Split([5, 2, 4], stands_after=2), Split([1, 3, 2, 0, 5, 4])
    async with stack.serving(stack.service(first, drain_timeout=0)):
        task_id = await stack.submit()
        await eventually(lambda: len(first.worked_on) == 2)
    async with stack.serving(stack.service(second)):
        assert result_of(await stack.end(task_id)) == list(range(ITEMS))
    assert [each.worked_on for each in (first, second)] == [[5, 2], [1, 3, 0, 4]]


async def test_what_it_sent_is_known_after_the_journal_was_folded(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "COMPACT_AFTER_TICKS", 3)
    in_turn = range(ITEMS)
    first, second = Split(in_turn, stands_after=5), Split(in_turn)
    async with stack.serving(stack.service(first, drain_timeout=0)):
        task_id = await stack.submit()
        await eventually(lambda: len(first.worked_on) == 5)
    async with stack.serving(stack.service(second)):
        assert result_of(await stack.end(task_id)) == list(range(ITEMS))
    assert second.worked_on == [5]
