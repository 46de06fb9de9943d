"""Requests that retry tasks, or change many at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic

from llama_deploy.client.payload_encoding import encode_json_object
from llama_deploy.errors import InvalidRequestError
from llama_deploy.types import generate_id
from llama_deploy.types.bulk_changes import BulkAction, BulkRequest
from llama_deploy.types.retries import TaskRetry
from llama_deploy.types.task_lists import TaskFilter
from llama_deploy.types.validation import describe_validation_error


def build_retry(*, from_: str, arguments: Mapping[str, Any] | None, task_id: str | None) -> dict[str, Any]:
    """Return the body of a request to retry a task.

    Raises:
        InvalidRequestError: An id is not valid.
        SerializationError: An argument cannot be converted to JSON.
    """
    encoded = None if arguments is None else encode_json_object(arguments)
    try:
        retry = TaskRetry(origin=from_, arguments=encoded, task_id=task_id or generate_id())
    except pydantic.ValidationError as exc:
        raise InvalidRequestError(f"the retry is not valid: {describe_validation_error(exc)}") from exc
    return retry.model_dump(mode="json", by_alias=True)


def build_bulk(action: BulkAction, wanted: TaskFilter, **options: Any) -> BulkRequest:
    """Return the first request of a change of many tasks.

    Raises:
        InvalidRequestError: It is not valid, or the filter has no condition.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return BulkRequest(action=action, filter=wanted, **given)
    except pydantic.ValidationError as exc:
        raise InvalidRequestError(f"the change is not valid: {describe_validation_error(exc)}") from exc
