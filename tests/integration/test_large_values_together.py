"""Tasks and sessions whose values are larger than what rows are read with, in all that reads them."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import Client
from llama_deploy.control_plane.decisions.state_versions import MAX_KEPT_CHARACTERS
from llama_deploy.errors import StateNotKeptError, TaskRemovedError
from llama_deploy.state_stores.large_values import DEFERRED_BYTES
from llama_deploy.types import SessionPolicy, TaskStatus
from llama_deploy.types.bulk_changes import BulkRequest
from llama_deploy.types.owners import THE_DEFAULT_TENANT
from llama_deploy.types.retention import PurgeRequest
from tests.integration.in_process import Stack, result_of, running_stack
from tests.integration.repairable_workflows import Second

LARGE = "x" * (2 * DEFERRED_BYTES)
VERY_LARGE = "y" * (MAX_KEPT_CHARACTERS + 1)


class Large(Workflow):
    """Keeps a large text in its run and its session, and fails until it is repaired."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.is_repaired = False

    @step
    async def keep(self, ctx: Context, ev: StartEvent) -> Second:
        await ctx.store.set("text", ev.text)
        return Second(number=len(ev.text))

    @step
    async def end(self, ctx: Context, ev: Second) -> StopEvent:
        text = await ctx.store.get("text")
        if not self.is_repaired:
            raise ValueError(text)
        return StopEvent(result=text)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    async with Client(stack.server.config.url) as client:
        yield client


async def test_tasks_with_large_values_are_retried_one_by_one_and_together(
    stack: Stack, client: Client
) -> None:
    workflow = Large()
    async with stack.serving(stack.service(workflow)):
        failed = [await stack.run("service", text=LARGE) for _ in range(3)]
        assert {each.status for each in failed} == {TaskStatus.FAILED}
        workflow.is_repaired = True
        for origin in ("start", "last_step"):
            for _ in range(2):  # the answer to the first one may be lost
                again = await client.tasks.retry(
                    failed[0].task_id, from_=origin, new_task_id=f"from {origin}"
                )
                assert await again.result() == LARGE
        request = BulkRequest.model_validate(
            {"action": "retry", "filter": {"status": ["failed"]}, "dry_run": False}
        )
        changed = await stack.plane.bulk_changes.change(request, owner=THE_DEFAULT_TENANT)
        repeated = await stack.plane.bulk_changes.change(
            request.model_copy(update={"bulk_id": changed.bulk_id}), owner=THE_DEFAULT_TENANT
        )
        assert (changed.changed, repeated.items) == (2, changed.items)
        for item in changed.items:
            if item.new_task_id is not None:
                assert result_of(await stack.end(item.new_task_id)) == LARGE


async def test_a_task_with_large_values_is_exported_imported_and_retried(
    stack: Stack, client: Client
) -> None:
    workflow = Large()
    async with running_stack() as other, Client(other.server.config.url) as there:
        async with stack.serving(stack.service(workflow)):
            failed = await stack.run("service", text=LARGE)
            document = await client.tasks.export(failed.task_id)
        assert json.loads(document.input) == {"text": LARGE}
        for _ in range(2):
            copy = await there.tasks.import_(document)
        assert copy.error is not None
        assert copy.error.message == LARGE
        workflow.is_repaired = True
        async with other.serving(other.service(workflow)):
            assert await (await there.tasks.retry(copy.task_id)).result() == LARGE


@pytest.mark.parametrize("policy", [SessionPolicy.ENQUEUE, SessionPolicy.PARALLEL_WHILE_WAITING])
async def test_a_session_with_a_large_state_is_forked_as_it_was(
    stack: Stack, client: Client, policy: SessionPolicy
) -> None:
    workflow = Large()
    workflow.is_repaired = True
    session_id = await stack.session(policy)
    session = await client.core.sessions.get(session_id)
    async with stack.serving(stack.service(workflow)):
        tasks = [await stack.run("service", session_id, text=text) for text in (LARGE, VERY_LARGE, "z")]
        for task, text in zip(tasks, (LARGE, VERY_LARGE, "z"), strict=True):
            assert result_of(task) == text
        history = await session.history()
        assert [item.value for item in history] == [LARGE, VERY_LARGE, "z"]
        fork = await session.fork(tasks[0].task_id)
        assert LARGE in json.dumps(await fork.get_workflow_state())
        with pytest.raises(StateNotKeptError):
            await session.fork(tasks[1].task_id)
        result_of(await stack.run("service", session_id, text=VERY_LARGE))
        newest = await session.fork()
        assert VERY_LARGE in json.dumps(await newest.get_workflow_state())
        result_of(await stack.run("service", newest.id, text="z"))


async def test_a_removed_task_with_large_arguments_is_known_by_them(stack: Stack, client: Client) -> None:
    workflow = Large()
    workflow.is_repaired = True
    arguments: dict[str, Any] = {"text": LARGE}
    async with stack.serving(stack.service(workflow)):
        task = await client.submit("service", task_id="large", arguments=arguments)
        assert await task.result() == LARGE
        await stack.plane.storage.purge(PurgeRequest(older_than_seconds=0))
        with pytest.raises(TaskRemovedError):
            await client.submit("service", task_id="large", arguments=arguments)
