"""Requests of clients for tasks: submit, get, wait, read events, send events, cancel."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from llama_deploy.control_plane.decisions import lifecycle, question_rules
from llama_deploy.control_plane.decisions.destinations import (
    Fleet,
    needs_fitting_version,
    shown,
    why_stranded,
)
from llama_deploy.control_plane.decisions.event_checks import check_receiver, event_fault, input_fault
from llama_deploy.control_plane.decisions.retention_rules import digest_of
from llama_deploy.control_plane.decisions.routing import NEW_ROUTE
from llama_deploy.control_plane.decisions.service_versions import (
    ServiceVersion,
    session_policy_of,
    versions_of,
)
from llama_deploy.control_plane.requests.services.living_versions import fault_in_living
from llama_deploy.control_plane.requests.sessions.session_requests import new_session
from llama_deploy.control_plane.requests.tasks.admission import accept_task
from llama_deploy.control_plane.requests.tasks.waiting_tasks import WaitingTasks
from llama_deploy.control_plane.storage.fleets import load_demand, load_fleets
from llama_deploy.control_plane.storage.owned_rows import check_session, check_task
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.removed_ids import check_not_removed, removal_error
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.control_plane.streams.event_filter import without_internal
from llama_deploy.control_plane.streams.expired_events import check_cursor
from llama_deploy.control_plane.streams.stream_hub import StreamHub, follow
from llama_deploy.errors import (
    ConflictError,
    InvalidRequestError,
    LlamaDeployError,
    OverloadedError,
    SerializationError,
    ServiceNotFoundError,
    SessionNotFoundError,
    TaskNotFoundError,
    VersionNotFoundError,
)
from llama_deploy.interceptors import AcceptCall, Hooks, around
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import EventRecord, ServiceRecord, TaskRecord
from llama_deploy.state_stores.retention_rows import RemovedTask
from llama_deploy.trace_context import trace_parent
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
from llama_deploy.types.audit import Actor, AuditAction
from llama_deploy.types.json_values import decode_object, encode_json, same_json
from llama_deploy.types.keys import check_tenant, internal_key, public_id, tenant_of
from llama_deploy.types.questions import QuestionState
from llama_deploy.types.tasks import RESERVED_TASK_IDS

_MAX_INBOX: Final = 10_000
"""How many events can be sent to one task. Those that are not consumed travel with its next claim."""

EventStream = AsyncIterator[list[EventRecord]]
"""Batches of events in order. An empty batch is a keep-alive."""


def task_view(task: TaskRecord) -> TaskView:
    """Return a task as clients see it; it was read whole."""
    task_id = public_id(task.task_id)
    stored = text_of(task.result)
    result = None if stored is None else TaskResult.model_validate_json(stored)
    return TaskView(
        task_id=task_id,
        session_id=public_id(task.session_id),
        service_name=task.target,
        status=task.shown_status,
        attempt=task.attempt,
        instance_id=task.instance_id,
        created_at=task.created_at,
        finished_at=task.finished_at,
        result=result and result.model_copy(update={"task_id": task_id}),
        durability=task.durability,
        volatile_reason=task.volatile_reason,
        version=task.version,
    )


def check_inbox_room(task: TaskRecord) -> None:
    """Raise `OverloadedError` if a task has received the maximum number of events."""
    if task.inbox_length >= _MAX_INBOX:
        raise OverloadedError(
            f"task {public_id(task.task_id)} has received {_MAX_INBOX} events, the maximum for one task"
        )


class _NewTask(NamedTuple):
    """A task to be accepted."""

    task_id: str
    session_id: str | None
    service_name: str
    """Empty: the orchestrator knows."""
    input: str
    max_attempts: int
    session_policy: SessionPolicy | None
    """See `TaskSubmission`."""
    unchecked: dict[str, Any] | None
    """Its arguments, if they are to be checked."""
    tags: str = "[]"
    parent_task_id: str | None = None
    subject: str | None = None
    """The subject to which the caller is bound: whose it is, if its session is new."""
    trace: str | None = None
    """See `TaskRecord.trace`."""
    by: Actor | None = None


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
    on_submit: Hooks[AcceptCall] = ()
    """The hooks around the acceptance of a task."""

    async def submit(
        self,
        submission: TaskSubmission,
        *,
        wait: float = 0.0,
        subject: str | None = None,
        by: Actor | None = None,
    ) -> TaskView:
        """Accept a task. It is durable when this returns. Submitting it again does not create a second task.

        Args:
            submission: What to run. Without a session id, the task gets a session of its own.
            wait: Seconds to wait for its end.
            subject: The subject to which the caller is bound: whose a new session is, and so the task. None:
                nobody's in particular.
            by: Who is named in the audit log. None: nobody.

        Raises:
            ServiceNotFoundError: The service is not registered.
            SessionNotFoundError: The named session does not exist, or belongs to another subject.
            SessionBusyError: The session's policy is to reject a second open task.
            ConflictError: A different task has this id.
            TaskRemovedError: The task has ended and was removed.
            TaskNotFoundError: A task with this id belongs to another subject.
            OverloadedError: Too many tasks of the service wait.
            InvalidRequestError: No living version of the service accepts the arguments, or the task id is
                reserved.
        """
        new = _NewTask(
            submission.task_id,
            submission.session_id,
            submission.service_name,
            _encoded(submission.arguments),
            submission.max_attempts or self.default_max_attempts,
            submission.session_policy,
            None if self.routed else submission.arguments,
            json.dumps(submission.tags) if submission.tags else "[]",
            submission.parent_task_id,
            subject,
            trace_parent.get(),
            by,
        )
        return await self._submit(new, wait=wait)

    async def submit_definition(
        self, task: TaskDefinition, *, subject: str | None = None, by: Actor | None = None
    ) -> TaskView:
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
                    f"task {public_id(task.task_id)} does not name a service; set agent_id to the name of one"
                )
            arguments = decode_object(text, what="the input with the run arguments")
            text = _encoded(arguments)
        new = _NewTask(
            task.task_id,
            task.session_id,
            task.agent_id or "",
            text,
            self.default_max_attempts,
            None,
            arguments,
            subject=subject,
            trace=trace_parent.get(),
            by=by,
        )
        return await self._submit(new, wait=0.0)

    async def _submit(self, new: _NewTask, *, wait: float) -> TaskView:
        if (shown := public_id(new.task_id)) in RESERVED_TASK_IDS:
            raise InvalidRequestError(
                f"the task id {shown!r} is reserved: it is a path below /tasks; choose another one"
            )
        await self._check_room(new)
        with self.hub.watch(new.task_id) as watch:
            task = await (self._accept_in_hooks(new) if self.on_submit else self._accept(new))
            self.waiting.accepted(new.service_name)
            if task.status.is_terminal or wait <= 0:
                return task_view(task)
            return await watch.end(wait) or await self.get(new.task_id)

    async def _accept_in_hooks(self, new: _NewTask) -> TaskRecord:
        call = AcceptCall(
            task_id=public_id(new.task_id),
            session_id=new.session_id and public_id(new.session_id),
            service_name=new.service_name,
            parent_task_id=new.parent_task_id and public_id(new.parent_task_id),
            trace=new.trace,
            tenant=tenant_of(new.task_id),
            subject=new.subject,
        )
        with around(self.on_submit, call):
            task = await self._accept(new._replace(trace=call.trace))
            call.status, call.subject = task.status, task.subject
        return task

    async def _check_room(self, new: _NewTask) -> None:
        try:
            await self.waiting.check(new.service_name)
        except OverloadedError:
            # A task that was accepted before is found, whatever waits.
            if not await self.store.read(lambda tx: tx.tasks.load([new.task_id], lean=True)):
                raise

    async def _accept(self, new: _NewTask) -> TaskRecord:
        tenant = tenant_of(new.task_id)
        check_tenant(tenant, new.session_id, new.parent_task_id)
        new_session_id = internal_key(tenant, generate_id()) if new.session_id is None else None
        session_id = new.session_id or new_session_id or ""

        def run(unit: Unit) -> TaskRecord:
            known = unit.tasks.find(new.task_id)
            if known is not None:
                return _same_task(unit.tasks.whole(known), new)
            if (removed := unit.tasks.find_removed(new.task_id)) is not None:
                raise _once_accepted(removed, new)
            subject = new.subject
            if new_session_id is None and (session := unit.sessions.find(session_id)) is not None:
                check_session(session_id, session.subject, subject)
                subject = session.subject
            service = None if self.routed else _checked(new, unit.services.find(new.service_name))
            task = TaskRecord(
                task_id=new.task_id,
                session_id=session_id,
                service_name=new.service_name,
                input=new.input,
                status=TaskStatus.PENDING,
                created_at=unit.now,
                status_changed_at=unit.now,
                max_attempts=new.max_attempts,
                tags=new.tags,
                tenant=tenant,
                subject=subject,
                parent_task_id=new.parent_task_id,
                trace=new.trace,
                routing=NEW_ROUTE if self.routed else None,
            )
            if new_session_id is not None:
                first = _first_policy(new, service)
                unit.add_session(new_session(new_session_id, policy=first, at=unit.now, subject=new.subject))
            accepted = accept_task(unit, task, asked=new.session_policy)
            if new.by is not None:
                unit.audit.note(AuditAction.TASK_SUBMIT, new.task_id, service=new.service_name or None)
            return accepted

        reads = Reads(
            tasks={new.task_id},
            sessions={session_id} if new_session_id is None else set(),
            services=set() if self.routed else {new.service_name},
        )
        try:
            return await self.writer.write(Command(run, reads, new.by))
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
        if task.status not in (TaskStatus.QUEUED, TaskStatus.WAITING) or not needs_fitting_version(task):
            return view
        now = self.clock()

        def read(tx: StoreTransaction) -> str | None:
            fleet = load_fleets(tx, [task.target], now=now)[task.target]
            return why_stranded(load_demand(tx, task), fleet)

        return view.model_copy(update={"stranded": await self.store.read(read)})

    async def events(self, task_id: str, *, session_id: str | None = None, after: int = -1) -> EventStream:
        """Stream the task's events, from the one after `after` to the terminal one, without internal ones.

        Raises:
            TaskNotFoundError: The task does not exist, or not in the given session.
            SessionNotFoundError: The session does not exist.
            EventsExpiredError: Events after `after` were removed.
        """
        await check_cursor(self.store, await self._find(task_id, session_id, lean=True), after)
        return without_internal(follow(self.store, self.hub, task_id, after=after))

    async def send_event(
        self,
        task_id: str,
        event: EventDefinition,
        *,
        session_id: str | None = None,
        by: Actor | None = None,
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
        task = await self._find(task_id, session_id, lean=True)
        check_receiver(event, task.target)
        event = event.model_copy(update={"question_id": None})
        name, fields = event.content()
        fault = await self._fault(task.target, lambda version: event_fault(name, fields, version))
        if fault is not None:
            raise InvalidRequestError(f"service {task.target!r}: {fault}")

        def run(unit: Unit) -> None:
            current = unit.tasks.get(task_id)
            if unit.inbox.was_sent(task_id, event):
                return
            lifecycle.check_open(current)
            check_inbox_room(current)
            answered, sent = question_rules.answered_by(unit.questions.open_of(task_id), event)
            unit.add_to_inbox(current, sent)
            for question in answered:
                unit.questions.put(question_rules.closed(question, QuestionState.ANSWERED, at=unit.now))
                unit.audit.note_public(
                    AuditAction.QUESTION_ANSWER, question.question_id, tenant=tenant_of(task_id), via="event"
                )
            unit.audit.note(AuditAction.TASK_EVENT, task_id, event=name)

        keys = set() if event.idempotency_key is None else {(task_id, event.idempotency_key)}
        reads = Reads(tasks={task_id}, inbox_keys=keys, inboxes={task_id}, asking_tasks={task_id})
        await self.writer.write(Command(run, reads, by))

    async def cancel(self, task_id: str, *, by: Actor | None = None) -> TaskView:
        """Request the end of a task. A running one ends when its instance has stopped it.

        Raises:
            TaskNotFoundError: The task does not exist.
            TaskFinishedError: It has ended with another status.
        """

        def run(unit: Unit) -> TaskRecord:
            task = unit.tasks.get(task_id)
            cancelled = unit.apply(lifecycle.cancel(task, at=unit.now))
            if not (task.status.is_terminal or task.cancel_requested):
                unit.audit.note(AuditAction.TASK_CANCEL, task_id)
            return unit.tasks.whole(cancelled)

        command = Command(run, Reads.of_tasks(task_id, may_end=True), by)
        return task_view(await self.writer.write(command))

    async def move(self, task_id: str, move: TaskMove, *, by: Actor | None = None) -> TaskView:
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
            facts = {"to": version, "from": move.origin}
            if move.origin == "start":
                again = unit.apply(lifecycle.start_again(task, version, at=unit.now))
                unit.audit.note(AuditAction.TASK_MOVE, task_id, **facts)
                return again
            moved = lifecycle.move(task, version)
            fault = unit.fleets.fault_of_version(task._replace(pinned_to=None), version)
            if fault is not None:
                raise ConflictError(
                    f"task {public_id(task_id)} cannot continue with version {shown(version)}: {fault}. Moved"
                    ' from "start", it runs all its steps again'
                )
            unit.audit.note(AuditAction.TASK_MOVE, task_id, **facts)
            return unit.apply(moved)

        return await self._view(await self.writer.write(Command(run, Reads(tasks={task_id}), by)))

    async def _find(self, task_id: str, session_id: str | None, *, lean: bool = False) -> TaskRecord:
        task = (await self.store.read(lambda tx: tx.tasks.load([task_id], lean=lean))).get(task_id)
        if task is not None and session_id in (None, task.session_id):
            return task
        if task is None:
            await check_not_removed(self.store, task_id, session_id=session_id)
        if session_id is not None and not await self.store.read(
            lambda tx: tx.sessions.load([session_id], lean=True)
        ):
            shown = public_id(session_id)
            raise SessionNotFoundError(f"there is no session {shown}", session_id=shown)
        where = f" in session {public_id(session_id)}" if session_id is not None else ""
        shown = public_id(task_id)
        raise TaskNotFoundError(f"there is no task {shown}{where}", task_id=shown)

    async def _fault(self, service_name: str, fault: Callable[[ServiceVersion], str | None]) -> str | None:
        """Return why no living version of a service accepts an input. None: one may accept it."""
        return await fault_in_living(self.store, service_name, fault, now=self.clock())


def _checked(new: _NewTask, service: ServiceRecord | None) -> ServiceRecord:
    if service is None:
        raise ServiceNotFoundError(f"there is no service {new.service_name!r}")
    if new.unchecked is not None and input_fault(new.unchecked, versions_of(service.definition)[0]):
        raise _UnfitError
    return service


def _first_policy(new: _NewTask, service: ServiceRecord | None) -> SessionPolicy:
    """Return the policy of a session that begins with a task."""
    if new.session_policy is not None:
        return new.session_policy
    return SessionPolicy.ENQUEUE if service is None else session_policy_of(service.definition)


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


def _once_accepted(removed: RemovedTask, new: _NewTask) -> LlamaDeployError:
    """Return the error for a submission with the id of a task that was removed."""
    same_session = new.session_id in (None, removed.session_id)
    if same_session and removed.digest == digest_of(new.service_name, new.input):
        return removal_error(removed)
    return ConflictError(
        f"task {public_id(new.task_id)} existed with another service, session or arguments, and was removed;"
        " choose another task_id"
    )


def _same_task(known: TaskRecord, new: _NewTask) -> TaskRecord:
    """Return the task that an earlier request created from the same submission."""
    check_task(known.task_id, known.subject, new.subject)
    same_session = new.session_id in (None, known.session_id)
    same_service = known.service_name == new.service_name
    if same_session and same_service and same_json(text_of(known.input), new.input):
        return known
    raise ConflictError(
        f"task {public_id(known.task_id)} exists with another service, session or arguments; choose another"
        " task_id"
    )
