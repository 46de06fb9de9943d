"""Runs in which many branches wait for answers: what one tick costs does not depend on how many there are."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Self

import pytest
from tests.fan_outs import Answer, Done, Item, Splits
from workflows import Context, Workflow, step
from workflows.events import InputRequiredEvent, StopEvent

from llama_deploy import services
from llama_deploy.services.run.hosting import host_runs
from llama_deploy.services.run.inbox.run_inbox import RunInbox
from llama_deploy.services.run.run_observer import RunHooks
from llama_deploy.services.run.workflow_run import RunLimits, WorkflowRun
from llama_deploy.services.values.payloads import EventRegistry, StreamedEvent
from llama_deploy.services.values.run_arguments import RunCall
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import EventDefinition
from llama_deploy.types.instance_protocol import InboxEntry

SERVICES = services.__path__[0]


class Ask(InputRequiredEvent):
    number: int


class Asking(Splits):
    """Each branch asks a question of its own."""

    selects = True
    """Whether a branch waits for the answer with its number. Otherwise any answer ends all the waits."""
    pause = 0.0
    """Seconds that the first branches take before they ask."""

    @step
    async def ask(self, ctx: Context, ev: Item) -> Done:
        await asyncio.sleep(self.pause)
        requirements = {"number": ev.number} if self.selects else {}
        answer = await ctx.wait_for_event(
            Answer, waiter_event=Ask(number=ev.number), waiter_id=str(ev.number), requirements=requirements
        )
        return Done(number=answer.number)

    @step
    async def join(self, ev: list[Done]) -> StopEvent:
        return StopEvent(result=len(ev))


class Any_(Asking):  # noqa: N801 - one of the two kinds of question
    """Each branch waits for any answer."""

    selects = False


class Slow(Asking):
    """The answers come before the questions."""

    pause = 0.001


class Calls:
    """Counts the calls of our own functions while a run goes on."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._on_call)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.setprofile(None)

    def _on_call(self, frame: FrameType, event: str, argument: object) -> None:  # noqa: ARG002 - the interpreter's
        self.count += event == "call" and frame.f_code.co_filename.startswith(SERVICES)


def answer(number: int) -> InboxEntry:
    text = f'{{"type": "Answer", "value": {{"number": {number}}}}}'
    return InboxEntry(task_id="task", seq=number + 1, event=EventDefinition(event_obj_str=text))


async def nothing(event: StreamedEvent | None = None) -> None:
    """The lease is always there, and no test looks at the stream."""


async def calls_of_run(workflow: Workflow, count: int, *, early: bool) -> int:
    """Return how many of our functions a run calls that gets an answer to each question."""
    host_runs(workflow)
    inbox = RunInbox(
        task_id="task",
        workflow=workflow,
        registry=EventRegistry(workflow, [Answer]),
        on_seen=list[int]().append,
    )
    hooks = RunHooks(on_event=nothing, on_waiting=lambda: None, on_working=lambda: None, hold_lease=nothing)
    run = WorkflowRun(
        workflow,
        start=partial(RunCall.prepare(workflow, {"count": count}).start, None),
        inbox=inbox,
        hooks=hooks,
        label="the run",
        limits=RunLimits(timeout=60),
    )
    with Calls() as calls:
        running = asyncio.create_task(run.execute())
        if not early:
            await eventually(lambda: run.clock.is_waiting, seconds=60)
        for number in range(count):
            await inbox.put(answer(number))
        ending = await running
    assert ending is not None
    assert ending.value == count, ending
    return calls.count


@pytest.mark.parametrize(
    ("make", "early"), [(Asking, False), (Any_, False), (Slow, True)], ids=["own answer", "any", "early"]
)
async def test_each_answer_costs_the_same_however_many_wait(
    make: Callable[[], Asking],
    early: bool,  # noqa: FBT001
) -> None:
    few, many = 25, 100
    costs = {count: await calls_of_run(make(), count, early=early) for count in (few, many)}
    assert costs[many] / costs[few] < 1.25 * many / few
