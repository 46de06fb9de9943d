"""The steps that have ended: one row for each journal write, and the last ones in the row of their task."""

from __future__ import annotations

from collections.abc import Collection

from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import StepsRecord, TaskRecord
from llama_deploy.types.step_history import EndedSteps


def load_steps(
    tx: StoreTransaction, task: TaskRecord, *, after: tuple[int, int] = (0, -1), limit: int
) -> list[StepsRecord]:
    """Return the steps of a task in the order in which they were written.

    Args:
        tx: The transaction.
        task: The task.
        after: Only rows whose attempt and `first` are greater.
        limit: The most rows to return.
    """
    rows = tx.steps.load(task.task_id, after=after, limit=limit)
    if task.last_steps is not None and len(rows) < limit:
        last = EndedSteps.model_validate_json(task.last_steps)
        if (task.attempt, last.first) > after:
            rows.append(StepsRecord(task.task_id, task.attempt, last.first, last.steps))
    return rows


class StepRows:
    """Steps: gathered, and written by `flush`."""

    def __init__(self, tx: StoreTransaction) -> None:
        self._tx = tx
        self._rows: dict[tuple[str, int, int], StepsRecord] = {}

    def add(self, task_id: str, attempt: int, steps: EndedSteps | None) -> None:
        """Store steps of an attempt. The same ones may come again."""
        if steps is not None:
            self._rows[task_id, attempt, steps.first] = StepsRecord(
                task_id, attempt, steps.first, steps.steps
            )

    def drop(self, task_ids: Collection[str]) -> None:
        """Forget the steps of tasks that are being deleted."""
        self._rows = {key: row for key, row in self._rows.items() if row.task_id not in task_ids}

    def flush(self) -> None:
        """Write all changes."""
        if self._rows:
            self._tx.steps.put(list(self._rows.values()))
