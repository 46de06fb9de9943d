"""Rows to store in tests, each with the fields that matter given and the others filled in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, get_args, get_type_hints

from llama_deploy.state_stores.records import InstanceRecord, SessionRecord, TaskRecord
from llama_deploy.types import Durability, SessionPolicy, TaskStatus

NOW = datetime(2026, 2, 3, 4, 5, 6, 789_012, tzinfo=UTC)
"""With microseconds, which must come back."""

_VALUES: Final[dict[type, Callable[[int], object]]] = {
    bool: bool,
    int: int,
    float: lambda number: number / 4,
    str: "number {}".format,
    datetime: lambda number: NOW + timedelta(microseconds=number),
    TaskStatus: lambda _: TaskStatus.TIMED_OUT,
    Durability: lambda _: Durability.VOLATILE,
}
"""How a number, not 0 or 1, becomes a value of each type that a field of a task has."""


def a_session(session_id: str = "s1", *, version: int = 0) -> SessionRecord:
    """Return a session to store."""
    return SessionRecord(
        session_id=session_id,
        policy=SessionPolicy.ENQUEUE,
        state="{}",
        version=version,
        created_at=NOW,
        updated_at=NOW,
    )


def a_task(
    task_id: str = "t1",
    *,
    session_id: str = "s1",
    status: TaskStatus = TaskStatus.PENDING,
    **changes: Any,
) -> TaskRecord:
    """Return a task to store, with any other field in `changes`."""
    task = TaskRecord(
        task_id=task_id,
        session_id=session_id,
        service_name="greeter",
        input='{"name": "Zoë"}',
        status=status,
        created_at=NOW,
        status_changed_at=NOW,
        max_attempts=3,
    )
    return task._replace(**changes)


def a_full_task(task_id: str = "t1") -> TaskRecord:
    """Return a task without any default, in which all numbers, texts and times differ."""
    values: dict[str, Any] = {}
    for number, (name, kind) in enumerate(get_type_hints(TaskRecord).items(), start=2):
        plain = next(iter(get_args(kind)), kind)  # the first of `str | None` is `str`
        values[name] = _VALUES[plain](number)
    return TaskRecord(**values)._replace(task_id=task_id, tags='["red", "blue"]')


def an_instance(instance_id: str = "i1", *, service_name: str = "greeter") -> InstanceRecord:
    """Return an instance to store."""
    return InstanceRecord(
        instance_id=instance_id,
        service_name=service_name,
        host=None,
        port=None,
        last_heartbeat=NOW,
        lease_expires_at=NOW + timedelta(seconds=5),
    )
