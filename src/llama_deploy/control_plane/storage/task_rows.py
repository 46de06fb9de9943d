"""The tasks of one transaction and their event streams."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import Final

from llama_deploy.control_plane.storage.reads import RowKind, Scope
from llama_deploy.control_plane.storage.removed_ids import removal_error
from llama_deploy.control_plane.storage.stream_growth import SHORT_STREAM, Growth
from llama_deploy.errors import TaskNotFoundError
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.large_values import Deferred
from llama_deploy.state_stores.records import PROGRESS, EventRecord, TaskRecord
from llama_deploy.state_stores.retention_rows import RemovedTask
from llama_deploy.types import TaskStatus
from llama_deploy.types.instance_protocol import EventPayload
from llama_deploy.types.keys import public_id

_WINDOW: Final = 32
"""How many open tasks of a session are read at first; most have fewer."""
_ALL: Final = 1 << 31
_all_but_progress: Final = attrgetter(*(name for name in TaskRecord._fields if name not in PROGRESS))


class TaskRows:
    """Tasks: loaded once, changed in memory, written by `flush`."""

    def __init__(self, tx: StoreTransaction, scope: Scope) -> None:
        self._tx = tx
        self._scope = scope
        self._records: dict[str, TaskRecord] = {}
        self._open: dict[str, dict[str, None]] = {}
        """The ids of the open tasks by session, oldest first, of the sessions for which they are known."""
        self._limits: dict[str, int] = {}
        """The sessions with further open tasks, each with how many were read: the others, and new ones, are
        younger."""
        self._new: set[str] = set()
        self._stored: dict[str, TaskRecord] = {}
        """The tasks that have changed, as they are stored."""
        self._events: list[EventRecord] = []
        self.streamed: dict[str, Growth] = {}
        """What is added to the streams that are not short."""
        self._removed: dict[str, RemovedTask] = {}

    # -- loading

    def load(self, task_ids: Collection[str]) -> None:
        """Read tasks."""
        if task_ids:
            self._records.update(self._tx.tasks.load(task_ids, lean=True))

    def load_removed(self, task_ids: Collection[str]) -> None:
        """Read what is left of those of the tasks that do not exist."""
        if missing := [task_id for task_id in task_ids if task_id not in self._records]:
            self._removed = self._tx.retention.removed(missing)

    def load_open(self, session_ids: Collection[str], *, limit: int = _WINDOW) -> None:
        """Read the oldest open tasks of sessions, of each at least `limit` if there are so many."""
        if not session_ids:
            return
        before = {session_id: self._open.get(session_id, {}) for session_id in session_ids}
        self._open.update((session_id, {}) for session_id in session_ids)
        counts: Counter[str] = Counter()
        for task in self._tx.tasks.first_open(session_ids, limit=limit):
            counts[task.session_id] += 1
            known = self._records.setdefault(task.task_id, task)
            if not known.status.is_terminal:
                self._open[task.session_id][task.task_id] = None
        for session_id, known_before in before.items():
            if counts[session_id] >= limit:
                self._limits[session_id] = limit
            else:
                self._limits.pop(session_id, None)
            # What is new is not stored yet, and the youngest.
            self._open[session_id].update((each, None) for each in known_before if each in self._new)

    def loaded(self, task_ids: Collection[str]) -> list[TaskRecord]:
        """Return those of the tasks that exist."""
        return [self._records[task_id] for task_id in task_ids if task_id in self._records]

    def sessions_of(self, task_ids: Collection[str]) -> set[str]:
        """Return the ids of the tasks' sessions."""
        return {task.session_id for task in self.loaded(task_ids)}

    # -- reading

    def find(self, task_id: str) -> TaskRecord | None:
        """Return a task, None if it does not exist."""
        self._scope.require(RowKind.TASK, task_id)
        return self._records.get(task_id)

    def get(self, task_id: str) -> TaskRecord:
        """Return a task.

        Raises:
            TaskNotFoundError: It does not exist.
            TaskRemovedError: It was removed.
        """
        task = self.find(task_id)
        if task is None:
            if (removed := self._removed.get(task_id)) is not None:
                raise removal_error(removed)
            raise TaskNotFoundError(f"there is no task {public_id(task_id)}", task_id=public_id(task_id))
        return task

    def find_removed(self, task_id: str) -> RemovedTask | None:
        """Return what is left of a task that was removed, None if it was not."""
        self._scope.require(RowKind.TASK, task_id)
        return self._removed.get(task_id)

    def whole(self, task: TaskRecord) -> TaskRecord:
        """Return a task with its large values, which are read now."""
        if not (isinstance(task.input, Deferred) or isinstance(task.result, Deferred)):
            return task
        stored = self._tx.tasks.load([task.task_id])[task.task_id]
        result = stored.result if isinstance(task.result, Deferred) else task.result
        return task._replace(input=stored.input, result=result)

    def open_of(self, session_id: str) -> list[TaskRecord]:
        """Return the tasks of a session that have not ended, oldest first. There may be thousands."""
        self._scope.require(RowKind.OPEN_TASKS, session_id)
        if session_id not in self._open or session_id in self._limits:
            self.load_open([session_id], limit=_ALL)
        return self._opened(session_id)

    def oldest_open_of(self, session_id: str, *, past_waiting: bool = False) -> list[TaskRecord]:
        """Return the oldest tasks of a session that have not ended, oldest first: at least one, if any.

        Those are enough to know whose turn it is: tasks get their turn in the order of their age, so that one
        that waits for it is younger than all that do not.

        Args:
            session_id: The session.
            past_waiting: Whether one of them must not be shown as `waiting`, if there is such a task.
        """

        def is_passed(task_id: str) -> bool:
            is_waiting = past_waiting and self._records[task_id].shown_status is TaskStatus.WAITING
            return is_waiting or task_id in self._new

        self._scope.require(RowKind.OPEN_TASKS, session_id)
        if session_id not in self._open:
            self.load_open([session_id])
        while session_id in self._limits and all(map(is_passed, self._open[session_id])):
            self.load_open([session_id], limit=8 * self._limits[session_id])
        return self._opened(session_id)

    def _opened(self, session_id: str) -> list[TaskRecord]:
        self._scope.allow(RowKind.TASK, self._open[session_id])
        return self.loaded(self._open[session_id])

    def retries_of(self, task_id: str) -> set[str]:
        """Return the ids of the tasks that retry a task."""
        self._scope.require(RowKind.TASK, task_id)
        stored = self._tx.tasks.retries_of([task_id]).get(task_id, ())
        return {*stored, *(each for each in self._new if self._records[each].retry_of == task_id)}

    def of_instances(self, instance_ids: Collection[str]) -> list[TaskRecord]:
        """Return the running tasks that the instances have claimed. All of them may end."""
        for instance_id in instance_ids:
            self._scope.require(RowKind.INSTANCE, instance_id)
        for task in self._tx.tasks.of_instances(instance_ids):
            self._records.setdefault(task.task_id, task)
        found = [
            task
            for task in self._records.values()
            if task.status is TaskStatus.RUNNING and task.instance_id in instance_ids
        ]
        self._scope.allow(RowKind.TASK, [task.task_id for task in found])
        self._scope.allow(RowKind.OPEN_TASKS, [task.session_id for task in found])
        return found

    # -- writing

    def start_session(self, session_id: str) -> None:
        """Take note of a new session, which does not have tasks."""
        self._open[session_id] = {}

    def add(self, task: TaskRecord) -> None:
        """Store a new task."""
        self._new.add(task.task_id)
        self._scope.allow(RowKind.TASK, [task.task_id])
        self.put(task)

    def put(self, task: TaskRecord) -> TaskRecord:
        """Store a changed task, and return what it was before. A new one was the same."""
        self._scope.require(RowKind.TASK, task.task_id)
        before = self._records.get(task.task_id)
        self._records[task.task_id] = task
        if (open_tasks := self._open.get(task.session_id)) is not None:
            if task.status.is_terminal:
                open_tasks.pop(task.task_id, None)
            elif task.session_id not in self._limits or task.task_id in self._new:
                open_tasks.setdefault(task.task_id)
        if task.task_id in self._new or task == before:
            return before or task
        if before is not None:
            self._stored.setdefault(task.task_id, before)
        return before or task

    def append_events(self, task: TaskRecord, events: Sequence[EventPayload], *, attempt: int) -> None:
        """Store the last events of a task's stream, whose length already counts them.

        Args:
            task: The task.
            events: The events.
            attempt: The attempt that has written them.
        """
        last = task.stream_length - 1
        for index, event in enumerate(events, start=task.stream_length - len(events)):
            terminal = task.status.is_terminal and index == last
            data = json.dumps(event.data)
            self._events.append(
                EventRecord(task.task_id, index, event.type, data, terminal, attempt, event.step_run)
            )
        if task.stream_length > SHORT_STREAM:
            size = sum(len(event.data) for event in self._events[-len(events) :])
            growth = Growth(len(events), size)
            self.streamed[task.task_id] = self.streamed.get(task.task_id, Growth()).plus(growth)

    def drop_session(self, session_id: str) -> set[str]:
        """Forget the tasks of a session that is being deleted, and return their ids."""
        dropped = set(self._tx.tasks.ids_of_sessions([session_id]).get(session_id, ()))
        dropped.update(task.task_id for task in self._records.values() if task.session_id == session_id)
        for task_id in dropped:
            self._records.pop(task_id, None)
            self._stored.pop(task_id, None)
        self._new -= dropped
        self._events = [event for event in self._events if event.task_id not in dropped]
        self._open[session_id] = {}
        return dropped

    def changed(self) -> list[TaskRecord]:
        """Return the tasks that are new or have changed, but for those with other progress only."""
        return [
            task
            for task_id, task in self._records.items()
            if task_id in self._new
            or (
                task_id in self._stored
                and _all_but_progress(task) != _all_but_progress(self._stored[task_id])
            )
        ]

    def flush(self) -> None:
        """Write all changes."""
        if self._new:
            # A dictionary keeps the order of insertion, which is the order of the tasks in their session.
            new = [task for task_id, task in self._records.items() if task_id in self._new]
            self._tx.tasks.insert(new)
        if self._stored:
            changes = [(stored, self._records[task_id]) for task_id, stored in self._stored.items()]
            self._tx.tasks.change(changes)
        if self._events:
            self._tx.events.insert(self._events)
