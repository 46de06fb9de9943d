"""One run of a workflow."""

from __future__ import annotations

import asyncio
from functools import partial

from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy.services.arguments import RunCall
from llama_deploy.services.hosting import host_runs
from llama_deploy.services.mailbox import Mailbox
from llama_deploy.services.payloads import EventRegistry, StreamedEvent
from llama_deploy.services.runs import RunLimits, WorkflowRun


async def _hold() -> None:
    """The lease is always there."""


class Stubborn(Workflow):
    """Goes on streaming after its cancellation."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.streamed = asyncio.Event()

    @step
    async def stream(self, ctx: Context, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - found by its annotation
        try:
            ctx.write_event_to_stream(Event(number=1))
            await asyncio.Event().wait()
        finally:
            ctx.write_event_to_stream(Event(number=2))
            asyncio.get_running_loop().call_soon(self.streamed.set)
        return StopEvent()


async def test_nothing_of_a_cancelled_run_is_handed_on_when_it_has_returned() -> None:
    handed_on: list[StreamedEvent] = []
    first = asyncio.Event()

    async def note(event: StreamedEvent) -> None:
        handed_on.append(event)
        first.set()

    workflow = Stubborn()
    host_runs(workflow)
    run = WorkflowRun(
        workflow=workflow,
        start=partial(RunCall.prepare(workflow, {}).start, None),
        mailbox=Mailbox(task_id="task", registry=EventRegistry(workflow), on_seen=lambda _: None),
        on_event=note,
        label="the run",
        limits=RunLimits(timeout=None),
        on_waiting=lambda: None,
        hold_lease=_hold,
    )
    executing = asyncio.create_task(run.execute())
    async with asyncio.timeout(10):
        await first.wait()
        executing.cancel()
        await asyncio.wait({executing})
        await workflow.streamed.wait()
    assert executing.cancelled()
    assert [event.payload.data for event in handed_on] == [{"number": 1}]
