"""The rows that one grouped transaction works on: read once, changed in memory, written once."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final

from pydantic import BaseModel

from llama_deploy.backoff import Backoff
from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.lifecycle import Transition
from llama_deploy.control_plane.storage.run_rows import Runs
from llama_deploy.errors import SessionNotFoundError, TaskNotFoundError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.state_stores.base import (
    PROGRESS,
    EventRecord,
    InboxRecord,
    Notice,
    OutboxRecord,
    SessionRecord,
    StoreTransaction,
    TaskRecord,
)
from llama_deploy.types import EventDefinition, SessionPolicy, TaskStatus
from llama_deploy.types.instance_protocol import (
    MAX_EVENT_CHARACTERS,
    EventPayload,
    InboxEntry,
    JournalWrite,
    TaskCancellation,
    TaskDispatch,
)
from llama_deploy.types.json_values import encode_json
from llama_deploy.types.topics import CONTROL_PLANE, Topics

_RELAY_SECONDS: Final = 2.0
"""After how long another control plane hands a message to the queue that is still in the outbox."""
_progress_aside: Final = attrgetter(*(item.name for item in fields(TaskRecord) if item.name not in PROGRESS))


@dataclass(slots=True)
class Outgoing:
    """A message of the outbox, and where it goes."""

    topic: str
    message: QueueMessage


@dataclass(slots=True)
class Committed:
    """What a transaction has changed, for those who are to be told after it."""

    outgoing: list[Outgoing] = field(default_factory=list)
    grown: set[str] = field(default_factory=set)
    """Ids of tasks whose stream has grown."""
    ended: dict[str, TaskRecord] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    """Ids of tasks that were deleted."""
    due: datetime | None = None
    """When the first of the new timers, held back attempts and lease ends is due; None if there is none."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long attempts wait before they are handed to the queue."""

    unclaimed: Backoff
    """After each time that one was handed to it and nobody has claimed it."""
    lost: Backoff
    """After each loss of an instance under the task but the first, which costs no pause."""


class Unit:
    """The rows of one transaction.

    Commands run on it one after the other, each seeing what the earlier ones changed. A command raises
    before it changes anything, so that one that fails leaves the others untouched.
    """

    def __init__(
        self, tx: StoreTransaction, *, clock: Callable[[], datetime], topics: Topics, pauses: Pauses
    ) -> None:
        self.tx = tx
        self.now = clock()
        """When it was loaded."""
        self._clock = clock
        self.committed = Committed()
        self._topics = topics
        self._pauses = pauses
        self._tasks: dict[str, TaskRecord] = {}
        self._sessions: dict[str, SessionRecord] = {}
        self._open: dict[str, dict[str, TaskRecord]] = {}
        self._new_tasks: set[str] = set()
        self._changed_tasks: set[str] = set()
        self._grown_tasks: set[str] = set()
        """Tasks of which only the progress has changed."""
        self._new_sessions: set[str] = set()
        self._changed_sessions: set[str] = set()
        self._instances: dict[str, bool] = {}
        self._services: set[str] = set()
        self._events: list[EventRecord] = []
        self._inbox: list[InboxRecord] = []
        self._inbox_keys: set[tuple[str, str]] = set()
        self._consumed: set[tuple[str, int]] = set()
        self.runs = Runs(tx)

    def load(
        self,
        *,
        task_ids: Collection[str],
        session_ids: Collection[str],
        with_session_of: Collection[str],
        ending_task_ids: Collection[str],
        resumed_task_ids: Collection[str],
        inbox_keys: Collection[tuple[str, str]],
        instance_ids: Collection[str],
        free_task_ids: Collection[str],
    ) -> None:
        """Lock and read what the commands are going to need, in as few statements as possible.

        Args:
            task_ids: Tasks to read.
            session_ids: Sessions to read together with their open tasks.
            with_session_of: Tasks whose sessions are to be read.
            ending_task_ids: Tasks whose sessions are to be read with their open tasks.
            resumed_task_ids: Tasks whose runs are to be read.
            inbox_keys: Tasks with keys of events that may be in their inboxes already.
            instance_ids: Instances that are to be read or changed, with the tasks that they run.
            free_task_ids: Tasks to read unless another control plane decides on them now.
        """
        self.tx.lock(session_ids=session_ids, task_ids=task_ids, instance_ids=instance_ids)
        if wanted_tasks := self.tx.lock_free(free_task_ids).union(task_ids):
            self._tasks.update(self.tx.load_tasks(wanted_tasks))
        with_open_tasks = self._sessions_of(ending_task_ids).union(session_ids)
        if wanted := with_open_tasks | self._sessions_of(with_session_of):
            self._sessions.update(self.tx.load_sessions(wanted))
        if with_open_tasks:
            self._load_open_tasks(with_open_tasks)
        known = self._tasks
        self.runs.load({key for key in resumed_task_ids if key in known and known[key].has_run})
        if keys := {item for item in inbox_keys if item[0] in known and known[item[0]].inbox_length}:
            self._inbox_keys = self.tx.known_inbox_keys(keys)
        self.now = self._clock()  # to wait for others' locks may have taken long

    def _sessions_of(self, task_ids: Collection[str]) -> set[str]:
        return {self._tasks[task_id].session_id for task_id in task_ids if task_id in self._tasks}

    def _load_open_tasks(self, session_ids: Collection[str]) -> None:
        for session_id in session_ids:
            self._open[session_id] = {}
        for task in self.tx.session_tasks(list(session_ids), open_only=True):
            known = self._tasks.setdefault(task.task_id, task)
            if not known.status.is_terminal:
                self._open[task.session_id][task.task_id] = known

    # -- reading

    def task(self, task_id: str) -> TaskRecord:
        """Return a task.

        Raises:
            TaskNotFoundError: There is none of this id.
        """
        task = self._tasks.get(task_id)
        if task is None:
            raise TaskNotFoundError(f"there is no task {task_id}", task_id=task_id)
        return task

    def find_task(self, task_id: str) -> TaskRecord | None:
        """Return a task, or None."""
        return self._tasks.get(task_id)

    def session(self, session_id: str) -> SessionRecord:
        """Return a session.

        Raises:
            SessionNotFoundError: There is none of this id.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionNotFoundError(f"there is no session {session_id}", session_id=session_id)
        return session

    def find_session(self, session_id: str) -> SessionRecord | None:
        """Return a session, or None."""
        return self._sessions.get(session_id)

    def open_tasks(self, session_id: str) -> list[TaskRecord]:
        """Return the tasks of a session that have not ended, oldest first."""
        if session_id not in self._open:
            self._load_open_tasks([session_id])
        return list(self._open[session_id].values())

    def has_service(self, service_name: str) -> bool:
        """Whether there is such a service."""
        if service_name not in self._services:
            self._services.update(self.tx.load_services([service_name]))
        return service_name in self._services

    def delete_service(self, service_name: str) -> None:
        """Delete a service with its instances."""
        self.tx.delete_services([service_name])
        self._services.discard(service_name)

    def is_registered(self, instance_id: str) -> bool:
        """Whether there is such an instance."""
        if instance_id not in self._instances:
            self._instances[instance_id] = bool(self.tx.load_instances(instance_ids=[instance_id]))
        return self._instances[instance_id]

    def instance_tasks(self, instance_ids: Collection[str]) -> list[TaskRecord]:
        """Return the running tasks that the instances have claimed."""
        for task in self.tx.instance_tasks(instance_ids):
            self._tasks.setdefault(task.task_id, task)
        return [
            task
            for task in self._tasks.values()
            if task.status is TaskStatus.RUNNING and task.instance_id in instance_ids
        ]

    def inbox(self, task_ids: Collection[str]) -> list[InboxEntry]:
        """Return the inbox entries of tasks that are not consumed, ordered by task and sequence number."""
        wanted = [task_id for task_id in task_ids if self._tasks[task_id].inbox_length]
        if not wanted:
            return []
        stored = [*self.tx.load_inbox(wanted), *(entry for entry in self._inbox if entry.task_id in wanted)]
        return [
            InboxEntry(
                task_id=entry.task_id, seq=entry.seq, event=EventDefinition.model_validate_json(entry.event)
            )
            for entry in sorted(stored, key=lambda entry: (entry.task_id, entry.seq))
            if (entry.task_id, entry.seq) not in self._consumed
        ]

    def was_sent(self, task_id: str, event: EventDefinition) -> bool:
        """Whether an event of the same idempotency key was put into the task's inbox before."""
        return event.idempotency_key is not None and (task_id, event.idempotency_key) in self._inbox_keys

    # -- writing

    def add_session(self, session: SessionRecord) -> None:
        """Store a new session."""
        self._sessions[session.session_id] = session
        self._open[session.session_id] = {}
        self._new_sessions.add(session.session_id)

    def merge_state(self, session_id: str, changes: dict[str, Any]) -> SessionRecord:
        """Merge top-level keys into a session's state."""
        session = self.session(session_id)
        return self.put_state(session, {**json.loads(session.state), **changes})

    def put_state(self, session: SessionRecord, state: dict[str, Any]) -> SessionRecord:
        """Replace a session's state."""
        changed = replace(session, state=encode_json(state), version=session.version + 1)
        self._sessions[session.session_id] = changed
        if session.session_id not in self._new_sessions:
            self._changed_sessions.add(session.session_id)
        return changed

    def delete_session(self, session_id: str) -> None:
        """Delete a session with all that belongs to it."""
        self.session(session_id)
        tasks = {task.task_id for task in self.tx.session_tasks([session_id])}
        tasks.update(task_id for task_id, task in self._tasks.items() if task.session_id == session_id)
        self.tx.delete_sessions([session_id])
        self.committed.deleted.update(tasks)
        for task_id in tasks:
            self._tasks.pop(task_id, None)
        self._new_tasks -= tasks
        self._changed_tasks -= tasks
        self._grown_tasks -= tasks
        self._events = [event for event in self._events if event.task_id not in tasks]
        self._inbox = [entry for entry in self._inbox if entry.task_id not in tasks]
        self._consumed = {entry for entry in self._consumed if entry[0] not in tasks}
        self.runs.forget(tasks, stored=False)
        del self._sessions[session_id]
        self._new_sessions.discard(session_id)
        self._changed_sessions.discard(session_id)
        self._open.pop(session_id, None)

    def add_task(self, transition: Transition) -> TaskRecord:
        """Store a new task."""
        self._new_tasks.add(transition.task.task_id)
        return self.apply(transition)

    def apply(self, transition: Transition) -> TaskRecord:
        """Store what a transition made of a task, with all its effects."""
        task = transition.task
        if transition.dispatch:
            pause = self._pauses.unclaimed.delay(task.dispatches)
            task = replace(task, redispatch_at=self.now + timedelta(seconds=pause))
            self._dispatch(task)
        self._note_change(task)
        self._append(task, transition.events)
        if transition.journal is not None:
            self._write_journal(task, transition.journal)
        if transition.forget_run:
            self.runs.forget([task.task_id])
        due = task.redispatch_at if lifecycle.is_held_back(task) else task.wake_at
        if due is not None:
            self.note_due(due)
        if transition.notify_cancel:
            self._tell_instance(
                task, ActionTypes.CANCEL_TASK, TaskCancellation(task_id=task.task_id, attempt=task.attempt)
            )
        if transition.ended:
            self._end(task)
        elif task.session_id in self._open:
            self._open[task.session_id][task.task_id] = task
        return task

    def _note_change(self, task: TaskRecord) -> None:
        before = self._tasks.get(task.task_id)
        self._tasks[task.task_id] = task
        if task.task_id in self._new_tasks or task == before:
            return
        if before is not None and _progress_aside(before) == _progress_aside(task):
            self._grown_tasks.add(task.task_id)
        else:
            self._changed_tasks.add(task.task_id)

    def note_due(self, at: datetime) -> None:
        """Something is to be looked at then."""
        self.committed.due = min(self.committed.due or at, at)

    def lose(self, task: TaskRecord) -> TaskRecord:
        """The instance that ran the task is gone."""
        return self.apply(lifecycle.lose(task, at=self.now, backoff=self._pauses.lost))

    def postpone(self, task: TaskRecord) -> None:
        """Look later whether an attempt has to be handed to the queue again."""
        due = self.now + timedelta(seconds=self._pauses.unclaimed.first)
        self.apply(Transition(replace(task, redispatch_at=due)))

    def add_to_inbox(self, task: TaskRecord, event: EventDefinition) -> TaskRecord:
        """Append an event to a task's inbox, and tell the instance that runs it, or wake its parked run."""
        task = replace(task, inbox_length=task.inbox_length + 1)
        entry = InboxEntry(task_id=task.task_id, seq=task.inbox_length, event=event)
        key = event.idempotency_key
        self._inbox.append(InboxRecord(task.task_id, entry.seq, event.model_dump_json(), key))
        if key is not None:
            self._inbox_keys.add((task.task_id, key))
        # A larger event is brought by the answer to the instance's next heartbeat.
        if task.status is TaskStatus.RUNNING and len(event.event_obj_str) <= MAX_EVENT_CHARACTERS:
            self._tell_instance(task, ActionTypes.SEND_EVENT, entry)
        return self.apply(lifecycle.wake(task))

    def flush(self) -> Committed:
        """Write everything."""
        self._put(self.tx.insert_sessions, self._sessions, self._new_sessions)
        self._put(self.tx.update_sessions, self._sessions, self._changed_sessions)
        # A dictionary keeps the order of insertion, which is the order of the tasks in their session.
        self._put(self.tx.insert_tasks, self._tasks, self._new_tasks)
        self._put(self.tx.update_tasks, self._tasks, self._changed_tasks)
        self._put(self.tx.update_progress, self._tasks, self._grown_tasks - self._changed_tasks)
        if self._events:
            self.tx.insert_events(self._events)
        if self._inbox:
            self.tx.insert_inbox(self._inbox)
        if self._consumed:
            self.tx.consume_inbox(self._consumed)
        self.runs.flush()
        if self.committed.outgoing:
            relay_at = self.now + timedelta(seconds=_RELAY_SECONDS)
            self.tx.insert_outbox(
                [
                    OutboxRecord(item.message.id_, item.topic, item.message.encode().decode(), relay_at)
                    for item in self.committed.outgoing
                ]
            )
        if (changed := self.committed.grown | self.committed.deleted) or self.committed.due is not None:
            self.tx.notify(Notice(task_ids=frozenset(changed), due=self.committed.due))
        return self.committed

    @staticmethod
    def _put(write: Any, rows: dict[str, Any], ids: set[str]) -> None:
        if ids:
            write([row for key, row in rows.items() if key in ids])

    def _write_journal(self, task: TaskRecord, write: JournalWrite) -> None:
        self.runs.write(write)
        self._consumed.update((task.task_id, seq) for seq in write.consumed if 0 < seq <= task.inbox_length)

    def _append(self, task: TaskRecord, events: Iterable[EventPayload]) -> None:
        payloads = list(events)
        first = task.stream_length - len(payloads)
        last = task.stream_length - 1
        for index, event in enumerate(payloads, start=first):
            terminal = task.status.is_terminal and index == last
            data = json.dumps(event.data)
            self._events.append(EventRecord(task.task_id, index, event.type, data, terminal=terminal))
        if payloads:
            self.committed.grown.add(task.task_id)

    def _end(self, task: TaskRecord) -> None:
        """Take note of a task's end, and let the next task of its session take its turn."""
        self.committed.ended[task.task_id] = task
        self.open_tasks(task.session_id)  # reads them if nobody has yet
        open_tasks = self._open[task.session_id]
        open_tasks.pop(task.task_id, None)
        policy = self._sessions[task.session_id].policy if task.session_id in self._sessions else None
        if policy is SessionPolicy.PARALLEL or not open_tasks:
            return
        if all(other.status is TaskStatus.PENDING for other in open_tasks.values()):
            self.apply(lifecycle.take_turn(next(iter(open_tasks.values()))))

    def _dispatch(self, task: TaskRecord) -> None:
        dispatch = TaskDispatch(
            task_id=task.task_id,
            session_id=task.session_id,
            agent_id=task.service_name,
            attempt=task.attempt,
        )
        self._send(task, self._topics.work(task.service_name), ActionTypes.NEW_TASK, dispatch)

    def _tell_instance(self, task: TaskRecord, action: ActionTypes, data: BaseModel) -> None:
        if task.instance_id is not None:
            self._send(task, self._topics.instance(task.service_name, task.instance_id), action, data)

    def _send(self, task: TaskRecord, topic: str, action: ActionTypes, data: BaseModel) -> None:
        message = QueueMessage(
            publisher_id=CONTROL_PLANE,
            action=action,
            data=data.model_dump(mode="json"),
            type=task.service_name,
        )
        self.committed.outgoing.append(Outgoing(topic, message))
