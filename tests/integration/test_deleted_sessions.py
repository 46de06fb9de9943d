"""A session that is deleted while its tasks run, and what may use their ids again."""

from __future__ import annotations

import asyncio

import pytest
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.errors import SessionNotFoundError, TaskNotFoundError
from llama_deploy.types import TaskStatus, TaskSubmission
from tests.integration.in_process import Stack, result_of, running_stack, until


class Asks(Workflow):
    """Waits for an answer, and notes how often it began and was stopped."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.begun = self.stopped = 0

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.begun += 1
        try:
            if ev.get("then") == "end":
                return StopEvent(result="ended")
            ctx.write_event_to_stream(InputRequiredEvent(prefix="?"))
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return StopEvent(result="never")


async def submit(stack: Stack, session_id: str | None = None, **arguments: str) -> None:
    submission = TaskSubmission(
        service_name="service", task_id="mine", session_id=session_id, arguments=arguments
    )
    await stack.plane.tasks.submit(submission)


async def test_everybody_who_has_the_id_of_a_deleted_task_is_told_and_it_can_be_used_again() -> None:
    workflow = Asks()
    async with running_stack(redispatch_seconds=0.5) as stack, stack.serving(stack.service(workflow)):
        session = await stack.session()
        await submit(stack, session)
        await until(lambda: workflow.begun == 1)
        waiting = asyncio.create_task(stack.plane.tasks.get("mine", wait=60))
        reading = asyncio.create_task(stack.events("mine"))
        await asyncio.sleep(0)
        await stack.plane.sessions.delete(session, cancel=True)
        for told in (waiting, reading, stack.plane.tasks.get("mine"), stack.plane.tasks.cancel("mine")):
            with pytest.raises(TaskNotFoundError):
                await told
        with pytest.raises(TaskNotFoundError):
            await stack.send("mine", HumanResponseEvent(response="!"))
        with pytest.raises(SessionNotFoundError):
            await submit(stack, session)
        # The instance may still run the deleted task, whose attempt has the same number.
        await submit(stack, then="end")
        view = await stack.end("mine")
        assert (view.status, result_of(view)) == (TaskStatus.SUCCEEDED, "ended")
        await until(lambda: workflow.stopped == 1)
        assert workflow.begun == 2
        terminal = [event for event in await stack.events("mine") if event.terminal]
        assert [event.type for event in terminal] == ["StopEvent"]
