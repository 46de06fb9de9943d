"""Requests of clients for tasks: submit, get, wait, read events, send events, cancel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.destinations import Fleet, is_choosy, shown, why_stranded
from llama_deploy.control_plane.decisions.event_checks import check_receiver, event_fault, input_fault
from llama_deploy.control_plane.decisions.routing import NEW_ROUTE
from llama_deploy.control_plane.decisions.service_versions import (
    ServiceVersion,
    fault_in_all,
    versions_of,
)
from llama_deploy.control_plane.requests.service_requests import living_instances
from llama_deploy.control_plane.requests.session_requests import new_session
from llama_deploy.control_plane.requests.waiting_tasks import WaitingTasks
from llama_deploy.control_plane.storage.fleets import load_demand, load_fleets
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.control_plane.streams.attempt_markers import StreamItem
from llama_deploy.control_plane.streams.stream_hub import StreamHub, follow, follow_attempts
from llama_deploy.errors import (
    ConflictError,
    InvalidRequestError,
    OverloadedError,
    SerializationError,
    ServiceNotFoundError,
    SessionNotFoundError,
    TaskNotFoundError,
    VersionNotFoundError,
)
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import EventRecord, InstanceRecord, ServiceRecord, TaskRecord
from llama_deploy.types import (
    EventDefinition,
    SessionPolicy,
    TaskDefinition,
    TaskMove,
    TaskResult,
    TaskStatus,
    TaskSubmission,
    TaskView,
    generate_id,
)
from llama_deploy.types.json_values import decode_object, encode_json, same_json
from llama_deploy.types.keys import public_id

_MAX_INBOX: Final = 10_000
"""How many events can be sent to one task. Those that are not consumed travel with its next claim."""

EventStream = AsyncIterator[list[EventRecord]]
"""Batches of events in order. An empty batch is a keep-alive."""
AttemptStream = AsyncIterator[list[StreamItem]]
"""The same, with a `NewAttempt` wherever a new attempt takes over."""


def task_view(task: TaskRecord) -> TaskView:
    """Return a task as clients see it."""
    task_id = public_id(task.task_id)
    result = None if task.result is None else TaskResult.model_validate_json(task.result)
    return TaskView(
        task_id=task_id,
        session_id=public_id(task.session_id),
        service_name=task.target,
        status=task.status,
        attempt=task.attempt,
        instance_id=task.instance_id,
        created_at=task.created_at,
        finished_at=task.finished_at,
        result=result and result.model_copy(update={"task_id": task_id}),
        durability=task.durability,
        volatile_reason=task.volatile_reason,
        version=task.version,
    )


class _NewTask(NamedTuple):
    """A task to be accepted."""

    task_id: str
    session_id: str | None
    service_name: str
    """Empty: the orchestrator knows."""
    input: str
    max_attempts: int
    unchecked: dict[str, Any] | None
    """Its arguments, if they are to be checked."""


class _UnfitError(InvalidRequestError):
    """The version of a service that has registered last does not accept an input."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """Accepts tasks and returns their status."""

    store: StateStore
    writer: Writer
    hub: StreamHub
    """Notifies of their changes."""
    default_max_attempts: int
    """For submissions without `max_attempts`."""
    routed: bool
    """Whether an orchestrator chooses the services of new tasks."""
    waiting: WaitingTasks
    """Rejects tasks of services for which too many wait."""
    clock: Callable[[], datetime]
    """Returns the current time, aware, UTC."""

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
            OverloadedError: Too many tasks of the service wait.
            InvalidRequestError: No living version of the service accepts the arguments.
        """
        new = _NewTask(
            submission.task_id,
            submission.session_id,
            submission.service_name,
            _encoded(submission.arguments),
            submission.max_attempts or self.default_max_attempts,
            None if self.routed else submission.arguments,
        )
        return await self._submit(new, wait=wait)

    async def submit_definition(self, task: TaskDefinition) -> TaskView:
        """Accept a task in the form of 0.6, as `submit` does.

        Raises:
            InvalidRequestError: The task names no service, or its input is not a JSON object, and there is no
                orchestrator that reads it.
            LlamaDeployError: As `submit`.
        """
        text, arguments = task.input, None
        if not self.routed:
            if not task.agent_id:
                raise InvalidRequestError(
                    f"task {task.task_id} does not name a service; set agent_id to the name of one"
                )
            arguments = decode_object(text, what="the input with the run arguments")
            text = _encoded(arguments)
        new = _NewTask(
            task.task_id,
            task.session_id,
            task.agent_id or "",
            text,
            self.default_max_attempts,
            arguments,
        )
        return await self._submit(new, wait=0.0)

    async def _submit(self, new: _NewTask, *, wait: float) -> TaskView:
        await self._check_room(new)
        with self.hub.watch(new.task_id) as watch:
            task = await self._accept(new)
            self.waiting.accepted(new.service_name)
            if task.status.is_terminal or wait <= 0:
                return task_view(task)
            return await watch.end(wait) or await self.get(new.task_id)

    async def _check_room(self, new: _NewTask) -> None:
        try:
            await self.waiting.check(new.service_name)
        except OverloadedError:
            # A task that was accepted before is found, whatever waits.
            if not await self.store.read(lambda tx: tx.tasks.load([new.task_id])):
                raise

    async def _accept(self, new: _NewTask) -> TaskRecord:
        new_session_id = generate_id() if new.session_id is None else None
        session_id = new.session_id or new_session_id or ""

        def run(unit: Unit) -> TaskRecord:
            known = unit.tasks.find(new.task_id)
            if known is not None:
                return _same_task(known, new)
            if not self.routed:
                _check_new(new, unit.services.find(new.service_name))
            task = TaskRecord(
                task_id=new.task_id,
                session_id=session_id,
                service_name=new.service_name,
                input=new.input,
                status=TaskStatus.PENDING,
                created_at=unit.now,
                status_changed_at=unit.now,
                max_attempts=new.max_attempts,
                routing=NEW_ROUTE if self.routed else None,
            )
            if new_session_id is not None:
                unit.add_session(new_session(new_session_id, policy=SessionPolicy.ENQUEUE, at=unit.now))
            policy = unit.sessions.get(session_id).policy
            all_count = policy is SessionPolicy.INTERRUPT  # which cancels each of them
            find = unit.tasks.open_of if all_count else unit.tasks.oldest_open_of
            admission = lifecycle.admit(task, open_tasks=find(session_id), policy=policy)
            accepted = unit.add_task(admission.accepted)
            for other in admission.cancel:
                unit.apply(lifecycle.cancel(unit.tasks.get(other.task_id), at=unit.now))
            # Cancelling the others may have started this task.
            return unit.tasks.find(accepted.task_id) or accepted

        reads = Reads(
            tasks={new.task_id},
            sessions={session_id} if new_session_id is None else set(),
            services=set() if self.routed else {new.service_name},
        )
        try:
            return await self.writer.write(Command(run, reads))
        except _UnfitError:
            arguments = new.unchecked or {}
            fault = await self._fault(new.service_name, lambda version: input_fault(arguments, version))
            if fault is not None:
                raise InvalidRequestError(
                    f"service {new.service_name!r} does not accept the arguments: {fault}"
                ) from None
            return await self._accept(new._replace(unchecked=None))
        except ServiceNotFoundError as exc:
            known = await self.store.read(lambda tx: [each.service_name for each in tx.services.page()])
            raise ServiceNotFoundError.among(known, new.service_name) from exc

    async def get(self, task_id: str, *, session_id: str | None = None, wait: float = 0.0) -> TaskView:
        """Return a task as soon as it has ended, or after `wait` seconds.

        Raises:
            TaskNotFoundError: The task does not exist, or not in the given session.
            SessionNotFoundError: The session does not exist.
        """
        with self.hub.watch(task_id) as watch:
            task = await self._find(task_id, session_id)
            if task.status.is_terminal or wait <= 0:
                return await self._view(task)
            return await watch.end(wait) or await self._view(await self._find(task_id, session_id))

    async def _view(self, task: TaskRecord) -> TaskView:
        """Return a task as clients see it, with the reason if it is stranded."""
        view = task_view(task)
        if task.status not in (TaskStatus.QUEUED, TaskStatus.WAITING) or not is_choosy(task):
            return view
        now = self.clock()

        def read(tx: StoreTransaction) -> str | None:
            fleet = load_fleets(tx, [task.target], now=now)[task.target]
            return why_stranded(load_demand(tx, task), fleet)

        return view.model_copy(update={"stranded": await self.store.read(read)})

    async def events(self, task_id: str, *, session_id: str | None = None, after: int = -1) -> EventStream:
        """Stream the task's events, from the one after `after` to the terminal one.

        Raises:
            TaskNotFoundError: The task does not exist, or not in the given session.
            SessionNotFoundError: The session does not exist.
        """
        await self._find(task_id, session_id)
        return follow(self.store, self.hub, task_id, after=after)

    async def attempts(self, task_id: str, *, after: int = -1) -> AttemptStream:
        """Stream the task's events as `events` does, and where new attempts take over.

        Raises:
            TaskNotFoundError: The task does not exist.
        """
        await self._find(task_id, None)
        return follow_attempts(self.store, self.hub, task_id, after=after)

    async def has_more(self, task_id: str, *, after: int) -> bool:
        """Whether there are, or may still be, events after a position.

        Raises:
            TaskNotFoundError: The task does not exist.
        """
        task = await self._find(task_id, None)
        return not task.status.is_terminal or after < task.stream_length - 1

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
            OverloadedError: The task has received the maximum number of events, or those that its run has not
                consumed are too large.
            PayloadTooLargeError: The event is too large.
            InvalidRequestError: The event is malformed or for another service, or no living version of the
                service accepts its class and its fields.
        """
        task = await self._find(task_id, session_id)
        check_receiver(event, task.target)
        name, fields = event.content()
        fault = await self._fault(task.target, lambda version: event_fault(name, fields, version))
        if fault is not None:
            raise InvalidRequestError(f"service {task.target!r}: {fault}")

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
        reads = Reads(tasks={task_id}, inbox_keys=keys, inboxes={task_id})
        await self.writer.write(Command(run, reads))

    async def cancel(self, task_id: str) -> TaskView:
        """Request the end of a task. A running one ends when its instance has stopped it.

        Raises:
            TaskNotFoundError: The task does not exist.
            TaskFinishedError: It has ended with another status.
        """

        def run(unit: Unit) -> TaskRecord:
            return unit.apply(lifecycle.cancel(unit.tasks.get(task_id), at=unit.now))

        return task_view(await self.writer.write(Command(run, Reads.of_tasks(task_id, may_end=True))))

    async def move(self, task_id: str, move: TaskMove) -> TaskView:
        """Move a task to a version of its service, which continues its run or begins it again.

        Raises:
            TaskNotFoundError: The task does not exist.
            VersionNotFoundError: No living instance has the version.
            TaskFinishedError: The task has ended.
            ConflictError: The task is running, it waits for its turn, or its run cannot continue with this
                version: the text names what does not fit.
            InvalidRequestError: Several living versions begin with `to`.
        """

        def run(unit: Unit) -> TaskRecord:
            task = unit.tasks.get(task_id)
            unit.fleets.forget([task.target])
            version = _version_of(unit.fleets.of(task.target), move.to)
            if move.origin == "start":
                return unit.apply(lifecycle.start_again(task, version, at=unit.now))
            moved = lifecycle.move(task, version)
            fault = unit.fleets.fault_of_version(task._replace(pinned_to=None), version)
            if fault is not None:
                raise ConflictError(
                    f"task {public_id(task_id)} cannot continue with version {shown(version)}: {fault}. Moved"
                    ' from "start", it runs all its steps again'
                )
            return unit.apply(moved)

        return await self._view(await self.writer.write(Command(run, Reads(tasks={task_id}))))

    async def _find(self, task_id: str, session_id: str | None) -> TaskRecord:
        task = (await self.store.read(lambda tx: tx.tasks.load([task_id]))).get(task_id)
        if task is not None and session_id in (None, task.session_id):
            return task
        if session_id is not None and not await self.store.read(lambda tx: tx.sessions.load([session_id])):
            raise SessionNotFoundError(f"there is no session {session_id}", session_id=session_id)
        where = f" in session {session_id}" if session_id is not None else ""
        raise TaskNotFoundError(f"there is no task {task_id}{where}", task_id=task_id)

    async def _fault(self, service_name: str, fault: Callable[[ServiceVersion], str | None]) -> str | None:
        """Return why no living version of a service accepts an input. None: one may accept it."""

        def read(tx: StoreTransaction) -> tuple[str | None, list[InstanceRecord]]:
            service = tx.services.load([service_name]).get(service_name)
            return service and service.definition, tx.instances.load(service_names=[service_name])

        stored, instances = await self.store.read(read)
        if stored is None:
            return None
        living = living_instances(instances, self.clock())
        return fault_in_all(versions_of(stored), living=living, fault=fault)


def _check_new(new: _NewTask, service: ServiceRecord | None) -> None:
    if service is None:
        raise ServiceNotFoundError(f"there is no service {new.service_name!r}")
    if new.unchecked is not None and input_fault(new.unchecked, versions_of(service.definition)[0]):
        raise _UnfitError


def _version_of(fleet: Fleet, prefix: str) -> str:
    """Return the living version that begins with a prefix."""
    known = sorted(version for version in fleet.versions if version is not None)
    match [version for version in known if version.startswith(prefix)]:
        case [only]:
            return only
        case []:
            living = ", ".join(map(shown, known)) or "none"
            raise VersionNotFoundError(
                f"no living instance of service {fleet.service_name!r} has the version {prefix};"
                f" living versions: {living}",
                version=prefix,
            )
        case several:
            raise InvalidRequestError(
                f"several living versions begin with {prefix}: {', '.join(several)}; give more characters"
            )


def _encoded(arguments: dict[str, Any]) -> str:
    try:
        return encode_json(arguments)
    except SerializationError as exc:
        raise InvalidRequestError(f"arguments: {exc}") from exc


def _same_task(known: TaskRecord, new: _NewTask) -> TaskRecord:
    """Return the task that an earlier request created from the same submission."""
    same_session = new.session_id in (None, known.session_id)
    same_service = known.service_name == new.service_name
    if same_session and same_service and same_json(known.input, new.input):
        return known
    raise ConflictError(
        f"task {known.task_id} exists with another service, session or arguments; choose another task_id"
    )
