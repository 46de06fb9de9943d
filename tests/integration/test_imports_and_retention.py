"""Copies of exported tasks in a system that removes old tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from llama_deploy.control_plane.plane import utc_now
from llama_deploy.errors import ConflictError, TaskRemovedError
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.retention_rows import RemovedTask
from llama_deploy.types.retention import PurgeRequest
from tests.integration.in_process import Stack, running_stack
from tests.integration.repairable_workflows import FourSteps
from tests.integration.test_exports import export_of_failed, exported

AN_HOUR = PurgeRequest(older_than_seconds=3600)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


@pytest.fixture
async def document(stack: Stack) -> dict[str, Any]:
    """Return the export of a task that ended two days ago."""
    raw = (await export_of_failed(stack, FourSteps())).model_dump(mode="json")
    at = utc_now() - timedelta(days=2)
    raw["task"].update(
        created_at=(at - timedelta(seconds=1)).isoformat(), finished_at=at.isoformat(), since=at.isoformat()
    )
    return raw


async def test_a_copy_is_kept_as_long_from_its_import_as_a_task_from_its_end(
    stack: Stack, document: dict[str, Any]
) -> None:
    key = await stack.plane.exports.import_(document, task_id="copy")
    await stack.plane.storage.purge(AN_HOUR)
    assert (await stack.plane.tasks.get(key)).task_id == "copy"


async def test_a_copy_is_removed_with_its_session(stack: Stack, document: dict[str, Any]) -> None:
    key = await stack.plane.exports.import_(document, task_id="copy")
    session_id = (await stack.plane.tasks.get(key)).session_id
    await stack.plane.storage.purge(PurgeRequest(older_than_seconds=0))
    assert await stack.store.read(lambda tx: tx.sessions.load([session_id])) == {}


async def test_a_task_that_was_removed_comes_back_as_a_copy(stack: Stack) -> None:
    document = (await export_of_failed(stack, FourSteps())).model_dump(mode="json")
    task_id = document["task"]["task_id"]
    removed_at = []
    for _ in range(2):
        await stack.plane.storage.purge(PurgeRequest(older_than_seconds=0))
        with pytest.raises(TaskRemovedError):
            await stack.plane.tasks.get(task_id)
        removed = await stack.store.read(lambda tx: tx.retention.removed([task_id]))
        removed_at.append(removed[task_id].removed_at)
        assert await stack.plane.exports.import_(document) == task_id
        again = (await exported(stack, task_id)).model_dump(mode="json")
        assert (again["events"], again["run"]) == (document["events"], document["run"])
    assert removed_at[0] < removed_at[1]


async def test_a_copy_has_no_id_of_which_rows_are_still_removed(stack: Stack) -> None:
    document = await export_of_failed(stack, FourSteps())
    task_id = document.task.task_id

    def remove(tx: StoreTransaction) -> None:
        task = tx.tasks.load([task_id])[task_id]
        tx.retention.remove([RemovedTask(task_id, task.session_id, "", utc_now(), has_rest=True)])

    await stack.store.transact(remove)
    with pytest.raises(ConflictError, match="still being removed"):
        await stack.plane.exports.import_(document.model_dump(mode="json"))
    await stack.plane.storage.retention.sweep()
    await stack.plane.exports.import_(document.model_dump(mode="json"))
    assert (await exported(stack, task_id)).events == document.events
