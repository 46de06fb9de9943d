"""In which order the steps of a run are taken, and which wait until something is stored."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Coroutine
from typing import Any

from workflows.events import Event

from llama_deploy.services.run.steps.start_gate import StartGate
from llama_deploy.services.run.steps.step_turns import StepTurns
from llama_deploy.workflow_library import (
    AddCollectedEvent,
    NamedTask,
    PendingStart,
    PendingWorker,
    PullTask,
    StepId,
    StepWorkerResult,
    TickStepResult,
)

WORK, JOIN = map(StepId.from_str, ("work", "join"))


async def noted(notes: list[str], name: str) -> str:
    notes.append(name)
    return name


async def test_held_tasks_begin_when_the_gate_opens() -> None:
    gate, notes = StartGate(), list[str]()
    held = [gate.hold(noted(notes, name)) for name in ("a", "b")]
    assert gate.is_holding
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert notes == []
    gate.open()
    assert not gate.is_holding
    assert await asyncio.gather(*held) == ["a", "b"]
    gate.open()
    later = gate.hold(noted(notes, "c"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert notes == ["a", "b"], "an open gate does not stay open"
    gate.open()
    await later


async def test_a_held_task_that_is_cancelled_leaves_no_coroutine_behind() -> None:
    gate, notes = StartGate(), list[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for turns in (0, 1):
            task = gate.hold(noted(notes, "a"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
    assert notes == []


def started(pending: PendingStart) -> NamedTask:
    return pending.start(asyncio.create_task(pending.coro))


async def nothing() -> None:
    """Ends at once."""


def a_step(step_id: StepId, worker_id: int = 0) -> PendingWorker:
    coro: Coroutine[Any, Any, Any] = nothing()
    return PendingWorker(step_id, worker_id, coro)


def result(step_id: StepId, *results: StepWorkerResult | AddCollectedEvent) -> TickStepResult:
    return TickStepResult(step_id=step_id, worker_id=0, event=Event(), result=list(results))


async def test_the_oldest_step_that_has_ended_is_next() -> None:
    turns = StepTurns()
    never = asyncio.get_running_loop().create_future()
    running = a_step(WORK)
    first = running.start(asyncio.ensure_future(asyncio.wait_for(never, None)))
    running.coro.close()
    second, third = started(a_step(WORK, 1)), started(a_step(WORK, 2))
    turns.add([first, second, third])
    assert turns.next_ended() is None
    await asyncio.wait([second.task, third.task])
    assert turns.next_ended() is second.task
    turns.keep([first, third])
    assert turns.next_ended() is third.task
    turns.keep([first])
    assert turns.next_ended() is None
    never.cancel()


async def test_a_step_that_collects_comes_first_and_what_comes_from_outside_last() -> None:
    turns = StepTurns()
    pull = PullTask(0, asyncio.create_task(nothing()))
    work, join = started(a_step(WORK)), started(a_step(JOIN))
    turns.add([pull, work, join])
    await asyncio.wait([pull.task, work.task, join.task])
    assert turns.in_turn() == [work, join, pull]
    turns.learn(result(WORK, StepWorkerResult(result=None)))
    turns.learn(result(JOIN, AddCollectedEvent(event_id="default", event=Event())))
    assert turns.in_turn() == [join, work, pull]
    assert turns.next_ended() is join.task
    turns.keep([pull])
    assert turns.next_ended() is None


async def test_what_comes_from_outside_does_not_wait_for_ever() -> None:
    turns = StepTurns(max_delay=0.0)
    pull, join = PullTask(0, asyncio.create_task(nothing())), started(a_step(JOIN))
    turns.learn(result(JOIN, AddCollectedEvent(event_id="default", event=Event())))
    turns.add([join, pull])
    await asyncio.wait([join.task])
    await asyncio.wait([pull.task])
    assert turns.in_turn() == [pull, join]
    assert turns.next_ended() is pull.task
    turns.keep([join])
    assert turns.next_ended() is join.task


async def test_it_is_known_whether_a_step_collects() -> None:
    turns, work, join = StepTurns(), a_step(WORK), a_step(JOIN)
    turns.learn(result(JOIN, AddCollectedEvent(event_id="default", event=Event())))
    assert not turns.is_any_collecting([work])
    assert turns.is_any_collecting([work, join])
    work.coro.close()
    join.coro.close()
