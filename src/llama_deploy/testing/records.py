"""Rows to store in tests, each with the fields that matter given and the others filled in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from llama_deploy.state_stores.records import InstanceRecord, SessionRecord, TaskRecord
from llama_deploy.types import SessionPolicy, TaskStatus

NOW = datetime(2026, 2, 3, 4, 5, 6, 789_012, tzinfo=UTC)
"""With microseconds, which must come back."""


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
