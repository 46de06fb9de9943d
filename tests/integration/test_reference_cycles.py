"""A run leaves nothing behind that only the garbage collector can free."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import CoroutineType, FrameType, FunctionType

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.types import TaskStatus
from tests.integration.in_process import Stack, running_stack

RUNS = 150
"""An asyncio loop keeps up to 100 timers that were cancelled, and with them what they refer to."""


class Counted(Event):
    number: int


class Counts(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Counted:
        await ctx.store.set("begun", value=True)
        ctx.write_event_to_stream(Counted(number=1))
        return Counted(number=1)

    @step
    def end(self, ev: Counted) -> StopEvent:
        return StopEvent(result=[ev.number])


class Fails(Workflow):
    @step
    async def fall(self, ev: StartEvent) -> StopEvent:
        raise ValueError("down")


class Asks(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent()

    @step
    async def answer(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


@contextmanager
def collecting() -> Iterator[Counter[str]]:
    """Count what the block leaves to the garbage collector, by name; of this package and this module only."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        names = ((_module_of(item), type(item).__qualname__) for item in gc.garbage)
        found.update(
            f"{module}.{name}" for module, name in names if module.startswith(("llama_deploy", __name__))
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _module_of(item: object) -> str:
    """Return where an object is from: the code of functions and of what runs, else its class."""
    match item:
        case FunctionType():
            return item.__module__
        case FrameType():
            return str(item.f_globals.get("__name__"))
        case CoroutineType() if item.cr_frame is not None:
            return str(item.cr_frame.f_globals.get("__name__"))
    return type(item).__module__


async def test_a_cycle_is_found() -> None:
    with collecting() as found:
        event = Counted(number=1)
        event.itself = event
        del event
    assert found == {f"{__name__}.Counted": 1}


@pytest.mark.parametrize("workflow", [Counts, Fails, Asks])
async def test_a_run_leaves_no_reference_cycle_behind(
    stack: Stack, caplog: pytest.LogCaptureFixture, workflow: type[Workflow]
) -> None:
    caplog.set_level(logging.CRITICAL, logger="llama_deploy")  # the exceptions in records stay until the end

    async def run() -> None:
        task_id = await stack.submit()
        if workflow is Asks:
            await stack.send(task_id, HumanResponseEvent(response="yes"))
        status = (await stack.end(task_id)).status
        assert status is (TaskStatus.FAILED if workflow is Fails else TaskStatus.SUCCEEDED)

    async with stack.serving(stack.service(workflow)):
        await run()
        with collecting() as found:
            for _ in range(RUNS):
                await run()
    assert found == {}
