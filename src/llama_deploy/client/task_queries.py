"""Conditions on tasks, from what a caller gives to the parameters of a query."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

import pydantic

from llama_deploy.errors import InvalidRequestError
from llama_deploy.types.task_lists import TaskFilter
from llama_deploy.types.validation import describe_validation_error

T = TypeVar("T")

Many: TypeAlias = T | Sequence[T]
"""One value, or several."""


def build_filter(**conditions: Any) -> TaskFilter:
    """Return the conditions on tasks, as the parameters of `TaskCollection.list` name them.

    Raises:
        InvalidRequestError: One of them is not valid.
    """
    given = {name: value for name, value in conditions.items() if value is not None}
    for name in ("status", "tag"):
        if isinstance(given.get(name), str):
            given[name] = (given[name],)
    for name, value in given.items():
        if isinstance(value, datetime):
            given[name] = value.astimezone()
    try:
        return TaskFilter(**given)
    except pydantic.ValidationError as exc:
        raise InvalidRequestError(f"the filter is not valid: {describe_validation_error(exc)}") from exc


def list_parameters(wanted: TaskFilter, *, limit: int | None, cursor: str | None) -> dict[str, Any]:
    """Return the parameters of the query for a page of tasks."""
    conditions = wanted.model_dump(mode="json", exclude_defaults=True)
    page = {"limit": limit, "cursor": cursor}
    return conditions | {name: value for name, value in page.items() if value is not None}
