"""Workflow services that override the methods of llama_deploy 0.6."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.errors import InvalidRequestError, UnavailableError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services import WorkflowService, WorkflowServiceConfig, WorkflowState
from llama_deploy.types import TaskResult, TaskStream
from tests.integration.in_process import Stack, failure_of, result_of, running_stack


class Counter(Workflow):
    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        number = await ctx.store.get("count", default=0) + 1
        await ctx.store.set("count", number)
        return StopEvent(result=number)


class Recording(WorkflowService):
    """Notes which of its methods the service calls."""

    def __init__(self, stack: Stack) -> None:
        config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="service")
        super().__init__(Counter(), stack.queue, config, gateway=stack.server.gateway())
        self.calls: list[str] = []

    async def get_workflow_state(self, state: WorkflowState) -> Context | None:
        self.calls.append("get_workflow_state")
        return await super().get_workflow_state(state)

    async def set_workflow_state(self, ctx: Context, current_state: WorkflowState) -> None:
        self.calls.append("set_workflow_state")
        await super().set_workflow_state(ctx, current_state)

    async def process_call(self, current_call: WorkflowState) -> None:
        self.calls.append(f"process_call {current_call.attempt}")
        await super().process_call(current_call)

    async def manage_tasks(self) -> None:
        self.calls.append("manage_tasks")
        await super().manage_tasks()


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def test_overrides_are_called_and_may_call_the_base(stack: Stack) -> None:
    service = Recording(stack)
    session_id = await stack.session()
    async with stack.serving(service):
        for number in (1, 2):
            assert result_of(await stack.run("service", session_id)) == number
    run = ["process_call 1", "get_workflow_state", "set_workflow_state"]
    assert service.calls == ["manage_tasks", *run, *run]


async def test_a_method_that_is_set_on_the_object_is_called(stack: Stack) -> None:
    service = stack.service(Counter())
    loaded: list[str | None] = []

    async def without_state(state: WorkflowState) -> Context | None:
        loaded.append(state.session_id)
        return None

    service.get_workflow_state = without_state  # type: ignore[method-assign]
    session_id = await stack.session()
    async with stack.serving(service):
        for _ in range(2):
            assert result_of(await stack.run("service", session_id)) == 1
    assert loaded == [session_id, session_id]


async def test_only_a_claimed_call_can_be_processed(stack: Stack) -> None:
    service = stack.service(Counter())
    call = WorkflowState(task_id="task", attempt=1)
    with pytest.raises(UnavailableError, match="not working"):
        await service.process_call(call)
    with pytest.raises(UnavailableError, match="not working"):
        await service.manage_tasks()
    async with stack.serving(service):
        await stack.run()
        with pytest.raises(InvalidRequestError, match="attempt 1 of task 'task' was not claimed"):
            await service.process_call(call)


async def test_process_call_may_publish_events_and_a_result_itself(stack: Stack) -> None:
    service = stack.service(Counter())

    async def answer(current_call: WorkflowState) -> None:
        task_id = str(current_call.task_id)
        reports = {
            ActionTypes.TASK_STREAM: TaskStream(task_id=task_id, data={"half": True}, index=0),
            ActionTypes.COMPLETED_TASK: TaskResult(task_id=task_id, history=[], result="whole", data={}),
        }
        for action, report in reports.items():
            await service.publish(QueueMessage(type="control_plane", action=action, data=report.model_dump()))

    service.process_call = answer  # type: ignore[method-assign]
    async with stack.serving(service):
        view = await stack.run()
        assert result_of(view) == "whole"
        assert [event.data for event in await stack.events(view.task_id)] == [
            {"half": True},
            {"result": "whole"},
        ]


async def test_an_exception_in_process_call_fails_the_task(stack: Stack) -> None:
    service = stack.service(Counter())

    async def fail(current_call: WorkflowState) -> None:
        raise KeyError("no such call")

    service.process_call = fail  # type: ignore[method-assign]
    async with stack.serving(service):
        assert failure_of(await stack.run()) == ("builtins.KeyError", "'no such call'")
