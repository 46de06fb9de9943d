"""Waiters wait for a task's key, and are given what clients see."""

from __future__ import annotations

from llama_deploy.control_plane.requests.tasks.task_requests import task_view
from llama_deploy.control_plane.streams.stream_hub import StreamHub
from llama_deploy.testing.records import a_task
from llama_deploy.types import TaskResult, TaskStatus
from llama_deploy.types.keys import internal_key

KEY = internal_key("acme", "report")


def test_the_end_of_a_task_reaches_only_the_waiters_for_its_key() -> None:
    result = TaskResult(task_id=KEY, result="done", status=TaskStatus.SUCCEEDED)
    task = a_task(KEY, status=TaskStatus.SUCCEEDED, result=result.model_dump_json())
    hub = StreamHub()
    with hub.watch("report") as other, hub.watch(KEY) as own:
        hub.ended(KEY, task_view(task))

    assert other.ended is None
    assert own.ended is not None
    assert own.ended.task_id == "report"
    assert own.ended.result is not None
    assert own.ended.result.task_id == "report"
