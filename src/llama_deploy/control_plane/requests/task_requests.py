"""Requests of clients for tasks: submit, get, wait, read events, send events, cancel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.event_checks import check_event
from llama_deploy.control_plane.requests.session_requests import new_session
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.control_plane.streams.stream_hub import StreamHub, follow
from llama_deploy.errors import (
    ConflictError,
    InvalidRequestError,
    OverloadedError,
    SerializationError,
    ServiceNotFoundError,
    SessionNotFoundError,
    TaskNotFoundError,
)
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.records import EventRecord, TaskRecord
from llama_deploy.types import (
    EventDefinition,
    ServiceDefinition,
    SessionPolicy,
    TaskResult,
    TaskStatus,
    TaskSubmission,
    TaskView,
    generate_id,
)
from llama_deploy.types.json_values import encode_json
from llama_deploy.types.keys import public_id

_MAX_INBOX: Final = 10_000
"""How many events can be sent to one task. Those that are not consumed travel with its next claim."""

EventStream = AsyncIterator[list[EventRecord]]
"""Batches of events in order. An empty batch is a keep-alive."""


def task_view(task: TaskRecord) -> TaskView:
    """Return a task as clients see it."""
    task_id = public_id(task.task_id)
    result = None if task.result is None else TaskResult.model_validate_json(task.result)
    return TaskView(
        task_id=task_id,
        session_id=public_id(task.session_id),
        service_name=task.service_name,
        status=task.status,
        attempt=task.attempt,
        instance_id=task.instance_id,
        created_at=task.created_at,
        finished_at=task.finished_at,
        result=result and result.model_copy(update={"task_id": task_id}),
        durability=task.durability,
        volatile_reason=task.volatile_reason,
    )


@dataclass(frozen=True, slots=True)
class Tasks:
    """Accepts tasks and returns their status."""

    store: StateStore
    writer: Writer
    hub: StreamHub
    """Notifies of their changes."""
    default_max_attempts: int
    """For submissions without `max_attempts`."""
    backlog: Callable[[], int]
    """Returns how many messages wait for the queue."""
    max_backlog: int
    """From how many waiting messages on new tasks are rejected."""

    async def submit(self, submission: TaskSubmission, *, wait: float = 0.0) -> TaskView:
        """Accept a task. It is durable when this returns. Submitting it again does not create a second task.

        Args:
            submission: What to run. Without a session id, the task gets a session of its own.
            wait: Seconds to wait for its end.

        Raises:
            ServiceNotFoundError: The service is not registered.
            SessionNotFoundError: The named session does not exist.
            SessionBusyError: The session's policy is to reject a second open task.
            ConflictError: A different task has this id.
            OverloadedError: Too many messages wait for the queue.
        """
        if self.backlog() >= self.max_backlog:
            raise OverloadedError(f"{self.max_backlog} messages are waiting for the queue; retry later")
        with self.hub.watch(submission.task_id) as watch:
            view = await self._accept(submission)
            if view.status.is_terminal or wait <= 0:
                return view
            return await watch.end(wait) or await self.get(submission.task_id)

    async def _accept(self, submission: TaskSubmission) -> TaskView:
        new_session_id = generate_id() if submission.session_id is None else None
        session_id = submission.session_id or new_session_id or ""
        try:
            arguments = encode_json(submission.arguments)
        except SerializationError as exc:
            raise InvalidRequestError(f"arguments: {exc}") from exc

        def run(unit: Unit) -> TaskRecord:
            known = unit.tasks.find(submission.task_id)
            if known is not None:
                return _same_task(known, submission, arguments)
            if not unit.services.exists(submission.service_name):
                raise ServiceNotFoundError(f"there is no service {submission.service_name!r}")
            task = TaskRecord(
                task_id=submission.task_id,
                session_id=session_id,
                service_name=submission.service_name,
                input=arguments,
                status=TaskStatus.PENDING,
                created_at=unit.now,
                status_changed_at=unit.now,
                max_attempts=submission.max_attempts or self.default_max_attempts,
            )
            if new_session_id is not None:
                unit.add_session(new_session(new_session_id, policy=SessionPolicy.ENQUEUE, at=unit.now))
            policy = unit.sessions.get(session_id).policy
            admission = lifecycle.admit(task, open_tasks=unit.tasks.open_of(session_id), policy=policy)
            accepted = unit.add_task(admission.accepted)
            for other in admission.cancel:
                unit.apply(lifecycle.cancel(unit.tasks.get(other.task_id), at=unit.now))
            # Cancelling the others may have started this task.
            return unit.tasks.find(accepted.task_id) or accepted

        reads = Reads(
            tasks={submission.task_id},
            sessions={session_id} if new_session_id is None else set(),
            services={submission.service_name},
        )
        try:
            return task_view(await self.writer.write(Command(run, reads)))
        except ServiceNotFoundError as exc:
            known = await self.store.read(lambda tx: tx.services.load())
            raise ServiceNotFoundError.among(known, submission.service_name) from exc

    async def get(self, task_id: str, *, session_id: str | None = None, wait: float = 0.0) -> TaskView:
        """Return a task as soon as it has ended, or after `wait` seconds.

        Raises:
            TaskNotFoundError: The task does not exist, or not in the given session.
            SessionNotFoundError: The session does not exist.
        """
        with self.hub.watch(task_id) as watch:
            view = task_view(await self._find(task_id, session_id))
            if view.status.is_terminal or wait <= 0:
                return view
            return await watch.end(wait) or task_view(await self._find(task_id, session_id))

    async def events(self, task_id: str, *, session_id: str | None = None, after: int = -1) -> EventStream:
        """Stream the task's events, from the one after `after` to the terminal one.

        Raises:
            TaskNotFoundError: The task does not exist, or not in the given session.
            SessionNotFoundError: The session does not exist.
        """
        await self._find(task_id, session_id)
        return follow(self.store, self.hub, task_id, after=after)

    async def send_event(
        self, task_id: str, event: EventDefinition, *, session_id: str | None = None
    ) -> None:
        """Put an event into the task's inbox, from which the running workflow receives it.

        The event wakes a parked run. An event whose idempotency key was sent to the task before is accepted
        and ignored, even if the task has ended since.

        Raises:
            TaskNotFoundError: The task does not exist, or not in the given session.
            SessionNotFoundError: The session does not exist.
            TaskFinishedError: The task has ended.
            OverloadedError: The task has received the maximum number of events.
            InvalidRequestError: The event is malformed, for another service, or of an unknown class.
        """
        task = await self._find(task_id, session_id)
        check_event(event, task.service_name, await self._definition(task.service_name))

        def run(unit: Unit) -> None:
            current = unit.tasks.get(task_id)
            if unit.inbox.was_sent(task_id, event):
                return
            lifecycle.check_open(current)
            if current.inbox_length >= _MAX_INBOX:
                raise OverloadedError(
                    f"task {task_id} has received {_MAX_INBOX} events, the maximum for one task"
                )
            unit.add_to_inbox(current, event)

        keys = set() if event.idempotency_key is None else {(task_id, event.idempotency_key)}
        await self.writer.write(Command(run, Reads(tasks={task_id}, inbox_keys=keys)))

    async def cancel(self, task_id: str) -> TaskView:
        """Request the end of a task. A running one ends when its instance has stopped it.

        Raises:
            TaskNotFoundError: The task does not exist.
            TaskFinishedError: It has ended with another status.
        """

        def run(unit: Unit) -> TaskRecord:
            return unit.apply(lifecycle.cancel(unit.tasks.get(task_id), at=unit.now))

        return task_view(await self.writer.write(Command(run, Reads.of_tasks(task_id, may_end=True))))

    async def _find(self, task_id: str, session_id: str | None) -> TaskRecord:
        task = (await self.store.read(lambda tx: tx.tasks.load([task_id]))).get(task_id)
        if task is not None and session_id in (None, task.session_id):
            return task
        if session_id is not None and not await self.store.read(lambda tx: tx.sessions.load([session_id])):
            raise SessionNotFoundError(f"there is no session {session_id}", session_id=session_id)
        where = f" in session {session_id}" if session_id is not None else ""
        raise TaskNotFoundError(f"there is no task {task_id}{where}", task_id=task_id)

    async def _definition(self, service_name: str) -> ServiceDefinition | None:
        services = await self.store.read(lambda tx: tx.services.load([service_name]))
        record = services.get(service_name)
        return ServiceDefinition.model_validate_json(record.definition) if record is not None else None


def _same_task(known: TaskRecord, submission: TaskSubmission, arguments: str) -> TaskRecord:
    """Return the task that an earlier request created from the same submission."""
    same_session = submission.session_id in (None, known.session_id)
    if (known.service_name, known.input) == (submission.service_name, arguments) and same_session:
        return known
    raise ConflictError(
        f"task {known.task_id} exists with another service, session or arguments; choose another task_id"
    )
