"""Tells interceptors of tasks that have ended, and of attempts that were lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TypeVar

from llama_deploy.interceptors import AttemptLoss, TaskEnd
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types.keys import public_id

logger = logging.getLogger(__name__)

N = TypeVar("N", TaskEnd, AttemptLoss)


def tell_ends(hooks: Sequence[Callable[[TaskEnd], object]], tasks: Iterable[TaskRecord]) -> None:
    """Call the hooks for each task. What they raise is logged: the tasks have ended in any case."""
    for task in tasks:
        end = TaskEnd(
            task_id=public_id(task.task_id),
            session_id=public_id(task.session_id),
            service_name=task.target,
            status=task.status,
            attempts=task.attempt,
            created_at=task.created_at,
            started_at=task.started_at,
            finished_at=task.finished_at,
            trace=task.trace,
            tenant=task.tenant,
            subject=task.subject,
        )
        _tell(hooks, end)


def tell_losses(
    hooks: Sequence[Callable[[AttemptLoss], object]],
    lost: Iterable[tuple[TaskRecord, TaskRecord]],
    *,
    at: datetime,
) -> None:
    """Call the hooks for each task that was taken from its instance, before and after that."""
    for before, after in lost:
        loss = AttemptLoss(
            task_id=public_id(before.task_id),
            session_id=public_id(before.session_id),
            service_name=before.target,
            attempt=before.attempt,
            claimed_at=before.claimed_at,
            lost_at=at,
            is_charged=after.losses > before.losses,
            trace=before.trace,
            tenant=before.tenant,
            subject=before.subject,
        )
        _tell(hooks, loss)


def _tell(hooks: Sequence[Callable[[N], object]], told: N) -> None:
    for hook in hooks:
        try:
            hook(told)
        except Exception:
            logger.exception(
                "an interceptor failed after a change of task %s",
                told.task_id,
                extra={"action": "interceptor_failed", "task_id": told.task_id},
            )
