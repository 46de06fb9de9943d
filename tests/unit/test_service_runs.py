"""One run of a workflow."""

from __future__ import annotations

import asyncio

from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy.services.arguments import RunCall
from llama_deploy.services.mailbox import Mailbox
from llama_deploy.services.payloads import EventRegistry, StreamedEvent
from llama_deploy.services.runs import WorkflowRun


class Endless(Workflow):
    @step
    async def stream(self, ctx: Context, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - found by its annotation
        ctx.write_event_to_stream(Event(number=1))
        await asyncio.Event().wait()
        return StopEvent()


async def test_nothing_of_a_cancelled_run_reads_on_when_it_returns() -> None:
    reading, ended = asyncio.Event(), asyncio.Event()

    async def hold(event: StreamedEvent) -> None:
        reading.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            ended.set()

    workflow = Endless()
    run = WorkflowRun(
        call=RunCall.prepare(workflow, {}),
        ctx=None,
        mailbox=Mailbox(
            task_id="task", workflow=workflow, registry=EventRegistry(workflow), on_seen=lambda _: None
        ),
        on_event=hold,
        label="the run",
    )
    executing = asyncio.create_task(run.execute())
    async with asyncio.timeout(10):
        await reading.wait()
        executing.cancel()
        await asyncio.wait({executing})
    assert executing.cancelled()
    assert ended.is_set()
