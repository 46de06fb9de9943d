"""Tasks that were removed: what a request for one gets, and whether their ids have to be looked up at all."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama_deploy.errors import TaskNotFoundError, TaskRemovedError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.state_stores.retention_rows import RemovedTask
from llama_deploy.types.keys import public_id


@dataclass(slots=True, eq=False)
class KnownRemovals:
    """What this control plane knows of removed tasks. Until one was removed, nothing is looked up."""

    exist: bool = True
    """Whether there may be any."""
    _notes: int = field(default=0, init=False)
    _begun: bool = field(default=False, init=False)

    def begin(self) -> None:
        """This control plane is about to remove tasks."""
        self._begun = self.exist = True

    def note(self) -> None:
        """Another control plane may have removed tasks."""
        self._notes += 1
        self.exist = True

    async def look(self, store: StateStore) -> None:
        """Look whether there are any.

        Raises:
            UnavailableError: The store does not answer.
        """
        before = self._notes
        found = await store.read(lambda tx: tx.retention.has_removed())
        if not (found or self._begun) and self._notes == before:
            self.exist = False


def removal_error(removed: RemovedTask) -> TaskRemovedError:
    """Return the error for a request for a task that was removed."""
    task_id, at = public_id(removed.task_id), removed.removed_at.isoformat(timespec="seconds")
    return TaskRemovedError(
        f"task {task_id} has ended, and was removed at {at} because its retention time was over. Its result"
        " is not stored any more. To run it again, submit it with another task_id",
        task_id=task_id,
        removed_at=at,
    )


def find_task(tx: StoreTransaction, task_id: str, *, lean: bool = False) -> TaskRecord:
    """Return a task; if `lean`, without its large values.

    Raises:
        TaskRemovedError: It was removed.
        TaskNotFoundError: It does not exist.
    """
    task = tx.tasks.load([task_id], lean=lean).get(task_id)
    if task is None:
        raise missing_task(tx, task_id)
    return task


def missing_task(tx: StoreTransaction, task_id: str) -> TaskNotFoundError:
    """Return the error for a request for a task that does not exist, and may have been removed."""
    removed = tx.retention.removed([task_id]).get(task_id)
    if removed is not None:
        return removal_error(removed)
    return TaskNotFoundError(f"there is no task {public_id(task_id)}", task_id=public_id(task_id))


async def check_not_removed(store: StateStore, task_id: str, *, session_id: str | None = None) -> None:
    """Raise an error if a task that does not exist was removed.

    Args:
        store: Where to look.
        task_id: The task.
        session_id: The session in which it is looked for. None: in any.

    Raises:
        TaskRemovedError: It was removed.
        UnavailableError: The store does not answer.
    """
    removed = (await store.read(lambda tx: tx.retention.removed([task_id]))).get(task_id)
    if removed is not None and session_id in (None, removed.session_id):
        raise removal_error(removed)
