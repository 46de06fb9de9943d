# Generated from client/aio/task_changes.py by `make sync-client`; do not edit.
"""The calls that retry tasks, and that change many at once."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from llama_deploy.client.paths import task_path
from llama_deploy.client.retry_encoding import build_bulk, build_retry
from llama_deploy.client.sync.server_api import ServerApi
from llama_deploy.types.bulk_changes import BulkAction, BulkRequest, BulkResult
from llama_deploy.types.task_lists import TaskDetails, TaskFilter


def retry(
    api: ServerApi,
    ended_id: str,
    *,
    from_: str,
    arguments: Mapping[str, Any] | None,
    task_id: str | None,
) -> TaskDetails:
    """Retry an ended task and return the new one.

    The id of the new task makes the call safe to repeat while the control plane does not respond.
    """
    body = build_retry(from_=from_, arguments=arguments, task_id=task_id)
    return api.post_again(task_path(ended_id) + "/retry", TaskDetails.model_validate, json=body)


def bulk(api: ServerApi, action: BulkAction, wanted: TaskFilter, **options: Any) -> Generator[BulkResult]:
    """Yield the results of the batches of a change. The id of the change makes each safe to repeat."""
    request: BulkRequest | None = build_bulk(action, wanted, **options)
    while request is not None:
        result = api.post_again("/tasks/bulk", BulkResult.model_validate, json=request.body())
        yield result
        request = request.next_batch(result)
