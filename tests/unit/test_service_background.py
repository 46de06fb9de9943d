"""Tasks beside their caller, and the slots of an instance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from llama_deploy.services.background import BackgroundTasks, run_to_completion
from llama_deploy.services.worker.held_attempts import HeldAttempts
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.services.worker.work_slots import WorkSlots
from llama_deploy.types import TaskStatus
from llama_deploy.types.instance_protocol import AttemptOutcome

OUTCOME = AttemptOutcome(
    task_id="task", attempt=1, token="t", first=0, events=[], status=TaskStatus.SUCCEEDED
)


async def settled(tasks: BackgroundTasks) -> None:
    await asyncio.wait(set(tasks))
    await asyncio.sleep(0)  # the callbacks of the tasks run after those that wait for them


async def fail() -> None:
    raise ValueError("broken")


async def test_a_failed_task_is_logged_and_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[int] = []
    tasks = BackgroundTasks("the owner", on_done=lambda: ended.append(len(tasks)))
    tasks.spawn(fail())
    assert len(tasks) == 1
    await settled(tasks)
    assert ended == [0]
    assert "the owner: a task failed" in caplog.text
    assert "broken" in caplog.text


async def test_cancelled_tasks_are_not_failures(caplog: pytest.LogCaptureFixture) -> None:
    tasks = BackgroundTasks("the owner")
    tasks.spawn(asyncio.sleep(60))
    tasks.cancel()
    await settled(tasks)
    assert not tasks
    assert not caplog.records


async def test_work_ends_although_its_caller_is_cancelled() -> None:
    gate, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        done.set()

    caller = asyncio.create_task(run_to_completion(work()))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done.is_set()


def nothing_to_confirm() -> None:
    pytest.fail("nothing is unconfirmed")


def slots(limit: int, ledger: Ledger, confirm: Callable[[], None] = nothing_to_confirm) -> WorkSlots:
    return WorkSlots(limit, ledger=ledger, attempts=HeldAttempts(), confirm=confirm, service_name="service")


async def test_a_task_takes_a_slot_until_it_ends() -> None:
    taken = slots(1, Ledger())
    gate = asyncio.Event()

    async def work() -> None:
        await gate.wait()

    taken.tasks.spawn(work())
    assert taken.free == 0
    waiting = asyncio.create_task(taken.wait_for_free())
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    await asyncio.wait_for(waiting, 10)
    assert taken.free == 1


async def test_unconfirmed_outcomes_take_all_slots_and_are_asked_for() -> None:
    ledger = Ledger(max_outcomes=1)
    ledger.hold("task", 1)
    ledger.finish(OUTCOME, size=1, now=0.0, patience=1.0)
    asked: list[bool] = []

    def confirm() -> None:
        asked.append(True)
        ledger.drop("task", 1)
        taken.changed()

    taken = slots(3, ledger, confirm)
    assert taken.free == 0
    await asyncio.wait_for(taken.wait_for_free(), 10)
    assert (taken.free, asked) == (3, [True])
    await asyncio.wait_for(taken.wait_for_confirmation(), 10)
    assert asked == [True], "there is nothing left to confirm"


async def test_draining_waits_for_tasks_but_not_longer_than_it_may() -> None:
    taken = slots(2, Ledger())
    await taken.drain(60)
    taken.tasks.spawn(asyncio.sleep(60))
    await asyncio.wait_for(taken.drain(0.01), 10)
    assert len(taken.tasks) == 1
    taken.tasks.cancel()
    await settled(taken.tasks)
