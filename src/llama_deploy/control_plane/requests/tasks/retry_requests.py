"""Requests of clients to try an ended task again, as a new task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from llama_deploy.control_plane.decisions import retries
from llama_deploy.control_plane.decisions.event_checks import input_fault
from llama_deploy.control_plane.decisions.forks import ForkedRun
from llama_deploy.control_plane.decisions.routing import NEW_ROUTE
from llama_deploy.control_plane.requests.services.living_versions import fault_in_living
from llama_deploy.control_plane.requests.tasks.admission import add_admitted, admit_task
from llama_deploy.control_plane.requests.tasks.run_forks import read_fork
from llama_deploy.control_plane.requests.tasks.waiting_tasks import WaitingTasks
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.removed_ids import missing_task, removal_error
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.errors import (
    InvalidRequestError,
    RetryRefusedError,
    SerializationError,
    ServiceNotFoundError,
)
from llama_deploy.interceptors import AcceptCall, Hooks, around
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.list_repositories import ListedTask
from llama_deploy.state_stores.records import JournalRecord, TaskRecord
from llama_deploy.trace_context import trace_parent
from llama_deploy.types.audit import Actor, AuditAction
from llama_deploy.types.instance_protocol import RunOrigin
from llama_deploy.types.json_values import encode_json, same_json
from llama_deploy.types.keys import public_id, tenant_of
from llama_deploy.types.retries import FROM_LAST_STEP, FROM_START, TaskRetry


@dataclass(frozen=True, slots=True)
class Retries:
    """Tries ended tasks again. The ended task never changes."""

    store: StateStore
    writer: Writer
    routed: bool
    """Whether an orchestrator chooses the services of new tasks."""
    waiting: WaitingTasks
    """Rejects tasks of services for which too many wait."""
    clock: Callable[[], datetime]
    """Returns the current time, aware, UTC."""
    on_submit: Hooks[AcceptCall] = ()

    async def retry(self, task_id: str, retry: TaskRetry, *, by: Actor | None = None) -> TaskRecord:
        """Accept a new task that retries an ended one. It is durable when this returns. Idempotent.

        Raises:
            TaskNotFoundError: The ended task does not exist.
            TaskRemovedError: The ended task, or one with the id of the new one, was removed.
            StepNotFoundError: There is no such step to go on before.
            RetryRefusedError: The task cannot be retried in this way; the text says why.
            InvalidRequestError: The place to begin is malformed, arguments were given for a run that goes on,
                or no living version of the service accepts them.
            ServiceNotFoundError: The service is not registered any more.
            SessionBusyError: The session's policy is to reject a second open task.
            OverloadedError: Too many tasks of the service wait.
        """
        found = await self.store.read(lambda tx: tx.tasks.load([task_id, retry.task_id]))
        if (known := found.get(retry.task_id)) is not None:
            return _same_retry(known, task_id, retry)
        ended = found.get(task_id)
        if ended is None:
            raise await self.store.read(lambda tx: missing_task(tx, task_id))
        fork = None
        if retry.origin not in (FROM_START, FROM_LAST_STEP):
            fork = await self.store.read(
                lambda tx: read_fork(tx, task_id, retry.origin, is_routed=self.routed)
            )
        text = await self._input(ended, retry)
        await self.waiting.check(ended.service_name)
        return await self.accept(ended, retry, text=text, fork=fork, by=by)

    async def accept(
        self,
        ended: TaskRecord | ListedTask,
        retry: TaskRetry,
        *,
        text: str | None = None,
        fork: retries.Fork | None = None,
        once: bool = False,
        by: Actor | None = None,
        bulk_id: str | None = None,
    ) -> TaskRecord:
        """Accept the new task, with what was checked.

        Args:
            ended: The ended task.
            retry: What is asked for.
            text: The new run arguments as JSON. None: the same ones.
            fork: Before which step the run goes on, if it is asked for one.
            once: Refuse a task that another one retries.
            by: Who is named in the audit log. None: nobody.
            bulk_id: The bulk change to which it belongs. None: to none.

        Raises:
            LlamaDeployError: As `retry`, or a hook refuses the task.
        """
        task_id, service_name = ended.task_id, ended.service_name
        call = AcceptCall(
            task_id=public_id(retry.task_id),
            session_id=public_id(ended.session_id),
            service_name=service_name,
            parent_task_id=None,
            trace=trace_parent.get(),  # of this request, not of the transaction
            retry_of=public_id(task_id),
            tenant=tenant_of(task_id),
        )

        def run(unit: Unit) -> TaskRecord:
            known = unit.tasks.find(retry.task_id)
            if known is not None:
                return _same_retry(unit.tasks.whole(known), task_id, retry)
            if (removed := unit.tasks.find_removed(retry.task_id)) is not None:
                raise removal_error(removed)  # the same retry may have run under this id
            plan = retries.retry(
                unit.tasks.whole(unit.tasks.get(task_id)),
                task_id=retry.task_id,
                origin=retry.origin,
                at=unit.now,
                routing=NEW_ROUTE if self.routed else None,
                input=text,
                fork=fork,
                trace=call.trace,
            )
            if once:
                _check_once(unit, task_id)
            if not self.routed and unit.services.find(service_name) is None:
                raise ServiceNotFoundError(f"there is no service {service_name!r} any more")
            new = _accept(unit, plan)
            facts = {"new_task": public_id(new.task_id), "from": retry.origin, "bulk": bulk_id}
            unit.audit.note(AuditAction.TASK_RETRY, task_id, **facts)
            return new

        ids = {task_id}
        reads = Reads(
            tasks={*ids, retry.task_id},
            sessions_of_tasks=ids,
            ending_tasks=ids,
            services=set() if self.routed else {service_name},
        )
        with around(self.on_submit, call):
            task = await self.writer.write(Command(run, reads, by))
            call.status, call.subject = task.status, task.subject
        self.waiting.accepted(task.service_name)
        return task

    async def _input(self, ended: TaskRecord, retry: TaskRetry) -> str | None:
        if retry.arguments is None:
            return None
        if retry.origin != FROM_START:
            raise InvalidRequestError(
                "only a retry from the start takes other arguments: the steps that are finished have used the"
                f' old ones; leave out the arguments, or set "from" to {FROM_START!r}'
            )
        try:
            text = encode_json(retry.arguments)
        except SerializationError as exc:
            raise InvalidRequestError(f"arguments: {exc}") from exc
        given, name = retry.arguments, ended.service_name
        fault = None
        if not self.routed:
            fault = await fault_in_living(
                self.store, name, lambda version: input_fault(given, version), now=self.clock()
            )
        if fault is not None:
            raise InvalidRequestError(f"service {name!r} does not accept the arguments: {fault}")
        return text


def _check_once(unit: Unit, task_id: str) -> None:
    if known := unit.tasks.retries_of(task_id):
        shown = public_id(min(known))
        raise RetryRefusedError(
            f"task {public_id(task_id)} was retried before, as task {shown}",
            task_id=public_id(task_id),
            reason="retried",
        )


def _accept(unit: Unit, plan: retries.Retry) -> TaskRecord:
    """Store the new task with its copies. Everything that may be refused is asked before."""
    task = plan.task
    ended = unit.tasks.get(task.retry_of or "")
    if (fault := _fault(unit, plan, ended)) is not None:
        place = "after its last step" if plan.fork is None else f"before step {plan.fork.step.step_id}"
        raise RetryRefusedError(
            f"task {public_id(ended.task_id)} cannot go on {place}: {fault}. Retried from {FROM_START!r}, it"
            " runs all its steps again",
            task_id=public_id(ended.task_id),
            reason="version",
        )
    admission = admit_task(unit, task)
    if plan.copies_run:
        origin = retries.origin_of_copy(ended, unit.runs.origin(ended), at=unit.now)
        unit.runs.copy(ended.task_id, task.task_id, origin)
    if plan.copies_inbox:
        unit.inbox.copy(ended.task_id, task.task_id)
    if plan.fork is not None and plan.fork.run is not None:
        _fork(unit, ended, task, fork=plan.fork, run=plan.fork.run)
    return add_admitted(unit, admission)


def _fault(unit: Unit, plan: retries.Retry, ended: TaskRecord) -> str | None:
    """Return why no living instance can go on with the run. None: one can, or it begins again."""
    if plan.fork is not None and plan.fork.run is not None:
        return unit.fleets.fault_of_fork(ended, plan.fork.run.head)
    return unit.fleets.fault_of_all(ended._replace(pinned_to=None)) if plan.copies_run else None


def _fork(unit: Unit, ended: TaskRecord, task: TaskRecord, *, fork: retries.Fork, run: ForkedRun) -> None:
    """Store the run of an ended task for a new one, as it was before a step."""
    stored = None if run.head.origin is None else RunOrigin.model_validate_json(run.head.origin)
    origin = retries.origin_of_fork(ended, stored, step=fork.step, entries=run.length, at=unit.now)
    entries = run.entries or []
    unit.runs.add(
        run.head._replace(task_id=task.task_id, origin=origin.model_dump_json()),
        [
            JournalRecord(task.task_id, seq, entry)
            for seq, entry in enumerate(entries, start=run.length - len(entries))
        ],
    )
    if run.entries is None:
        unit.runs.copy_entries(ended.task_id, task.task_id, length=run.length)


def _same_retry(known: TaskRecord, task_id: str, retry: TaskRetry) -> TaskRecord:
    """Return the task that an earlier request created for the same retry."""
    is_same = known.retry_of == task_id and known.retry_from == retry.origin
    if is_same and (retry.arguments is None or same_json(text_of(known.input), encode_json(retry.arguments))):
        return known
    raise RetryRefusedError(
        f"task {public_id(known.task_id)} exists and is another one; choose another task_id",
        task_id=public_id(known.task_id),
        reason="id",
    )
