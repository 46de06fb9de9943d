"""Steps that would end the process."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.services.run.steps.step_guard import (
    StepExitError,
    StepWatch,
    guard_steps,
    running_code,
    watching,
)
from llama_deploy.workflow_library import cache_steps


class Exits(Workflow):
    @step
    async def leave(self, ev: StartEvent) -> StopEvent:
        raise ev.get("error")


class SyncExits(Workflow):
    @step
    def leave(self, ev: StartEvent) -> StopEvent:
        raise ev.get("error")


class Inner(Workflow):
    def __init__(self) -> None:
        super().__init__()
        self.thread_id = threading.get_ident()
        self.seen: list[str] = []

    @step
    async def look(self, ctx: Context, ev: StartEvent) -> StopEvent:
        watcher = threading.Thread(target=lambda: self.seen.append(str(running_code(self.thread_id))))
        watcher.start()
        watcher.join()
        return StopEvent(result=await ctx.store.get("none", default="kept"))


@pytest.mark.parametrize("workflow", [Exits(), SyncExits()])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), BaseException("odd")])
async def test_what_would_end_the_process_fails_the_run(workflow: Workflow, error: BaseException) -> None:
    guard_steps(workflow)
    guard_steps(workflow)
    with pytest.raises(StepExitError, match="'leave' raised") as caught:
        await workflow.run(error=error)
    assert caught.value.raised is error


@pytest.mark.parametrize("workflow", [Exits(), SyncExits()])
async def test_the_begin_and_the_end_of_a_step_are_told_in_the_loop(workflow: Workflow) -> None:
    told: list[tuple[str, int]] = []

    def tell(what: str) -> None:
        told.append((what, threading.get_ident()))

    guard_steps(workflow)
    watch = StepWatch(lambda: tell("begin"), lambda: tell("end"))
    token = watching.set(watch)
    try:
        handler = workflow.run(error=SystemExit(3))
    finally:
        watching.reset(token)
    with pytest.raises(StepExitError):
        await handler
    with pytest.raises(StepExitError):  # another run, which nobody watches
        await workflow.run(error=SystemExit(3))
    assert told == [("begin", threading.get_ident()), ("end", threading.get_ident())]


async def test_ordinary_errors_and_other_instances_stay_as_they_are() -> None:
    guarded, other = Exits(), Exits()
    guard_steps(guarded)
    with pytest.raises(ValueError, match="plain"):
        await guarded.run(error=ValueError("plain"))
    assert "leave" in vars(guarded)
    assert "leave" not in vars(other)


async def test_free_functions_are_guarded() -> None:
    class Free(Workflow):
        pass

    @step(workflow=Free)
    async def leave_freely(ev: StartEvent) -> StopEvent:
        raise SystemExit

    workflow = Free()
    guard_steps(workflow)
    with pytest.raises(StepExitError, match="leave_freely"):
        await workflow.run()


async def test_the_running_step_is_named() -> None:
    workflow = Inner()
    guard_steps(workflow)
    assert await workflow.run() == "kept"
    assert "the step 'look' at " in workflow.seen[0]


def test_code_that_is_no_step_is_named_by_its_place() -> None:
    begun, end = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        end.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait()
    deadline = time.monotonic() + 5
    while "threading.py" not in running_code(thread.ident or 0).place and time.monotonic() < deadline:
        pass
    assert "threading.py:" in str(running_code(thread.ident or 0))
    end.set()
    thread.join()
    assert str(running_code(thread.ident or 0)) == "code that has just ended"


async def test_the_steps_are_searched_once_and_a_later_one_is_found() -> None:
    class Grows(Workflow):
        searches = 0

        @step
        async def first(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result="first")

        def _get_steps(self) -> dict[str, Any]:
            type(self).searches += 1
            return super()._get_steps()

    workflow = Grows()
    cache_steps(workflow)
    cache_steps(workflow)
    Grows.searches = 0
    assert [await workflow.run() for _ in range(5)] == ["first"] * 5
    assert Grows.searches == 1

    @step(workflow=Grows)
    async def second(ev: StartEvent) -> StopEvent:
        return StopEvent(result="second")

    assert set(workflow._get_steps()) == {"first", "second"}
