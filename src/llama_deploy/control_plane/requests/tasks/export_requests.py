"""Requests of clients for a task as one document, and for a copy of a task from such a document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llama_deploy.control_plane.decisions.forks import first_attempt_of_run
from llama_deploy.control_plane.decisions.imports import ImportedTask, content_of, imported, key_of
from llama_deploy.control_plane.requests.sessions.session_requests import new_session
from llama_deploy.control_plane.requests.tasks.task_lists import ended_steps, task_details
from llama_deploy.control_plane.storage.audit_rows import audit_record
from llama_deploy.control_plane.storage.owned_rows import check_task
from llama_deploy.control_plane.storage.past_rows import load_past
from llama_deploy.control_plane.storage.removed_ids import find_task
from llama_deploy.control_plane.storage.run_rows import run_record
from llama_deploy.control_plane.storage.step_rows import load_steps
from llama_deploy.errors import ConflictError, PayloadTooLargeError, TaskNotFoundError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import EventRecord, TaskRecord
from llama_deploy.types import SessionPolicy, TaskEvent, generate_id
from llama_deploy.types.audit import Actor, AuditAction
from llama_deploy.types.instance_protocol import RunRecord
from llama_deploy.types.json_values import decode_object
from llama_deploy.types.keys import public_id, tenant_of
from llama_deploy.types.owners import THE_DEFAULT_TENANT, Owner
from llama_deploy.types.task_export import ExportedEntry, TaskExport
from llama_deploy.types.workflow_shape import WorkflowShape

MAX_EXPORT_CHARACTERS: Final = 64 * 1024 * 1024
"""How much the journal, the inbox and the events of an exported task may have together."""
_PAGE: Final = 1000
_PAGE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Exports:
    """Returns tasks as documents, and stores copies of them."""

    store: StateStore
    clock: Callable[[], datetime]
    """Returns the current time, aware, UTC."""

    async def export(self, task_id: str) -> TaskExport:
        """Return all that is stored of a task.

        Raises:
            TaskNotFoundError: It does not exist.
            PayloadTooLargeError: It is too large for one document.
        """
        now = self.clock()
        return await self.store.read(lambda tx: _export(tx, task_id, now=now))

    async def import_(
        self,
        document: Mapping[str, Any],
        *,
        task_id: str | None = None,
        owner: Owner = THE_DEFAULT_TENANT,
        by: Actor | None = None,
    ) -> str:
        """Store a copy of an exported task in a session of its own, and return its key. Idempotent.

        Args:
            document: The decoded JSON of the export.
            task_id: The key of the copy. None: that of the task.
            owner: To whom the copy belongs.
            by: Who is named in the audit log. None: nobody.

        Raises:
            ExportFormatError: A newer release has written it.
            InvalidRequestError: It is not the document of an ended task.
            TaskNotFoundError: A task with this id belongs to another subject.
            ConflictError: Another task has the id, or one that had it is still being removed.
        """
        exported, now = TaskExport.read(document), self.clock()
        key = task_id or key_of(exported, owner)
        session_id = owner.key_of(generate_id())
        rows = imported(exported, task_id=key, session_id=session_id, at=now, subject=owner.subject)
        try:
            known = await self.store.transact(lambda tx: _import(tx, rows, now=now, by=by))
        except ConflictError as exc:  # another control plane may have stored the id first
            try:
                known = await self.export(key)
            except TaskNotFoundError:
                raise exc from None
        if known is not None and content_of(known) != content_of(exported):
            raise ConflictError(
                f"task {public_id(key)} exists and is another one; give the copy another id with task_id"
            )
        return key


def _import(
    tx: StoreTransaction, rows: ImportedTask, *, now: datetime, by: Actor | None
) -> TaskExport | None:
    """Store the rows, or return the task that has their id."""
    task = rows.task
    if (known := tx.tasks.load([task.task_id], lean=True).get(task.task_id)) is not None:
        check_task(task.task_id, known.subject, task.subject)
        return _export(tx, task.task_id, now=now)
    removed = tx.retention.removed([task.task_id]).get(task.task_id)
    if removed is not None and removed.has_rest:
        raise ConflictError(
            f"rows of task {public_id(task.task_id)} are still being removed; import it later, or give the"
            " copy another id with task_id"
        )
    # As if the task had been submitted without a session: the two are removed together.
    session = new_session(
        task.session_id, policy=SessionPolicy.ENQUEUE, at=task.created_at, subject=task.subject
    )
    tx.sessions.insert([session])
    tx.tasks.insert([task])
    tx.events.insert(rows.events)
    tx.inbox.insert(rows.inbox)
    tx.inbox.consume(rows.consumed)
    if rows.head is not None:
        tx.runs.put([rows.head])
        tx.runs.insert_journal(rows.journal)
        tx.runs.put_past(rows.past)
    if rows.steps:
        tx.steps.put(rows.steps)
    if by is not None:
        name, tenant = public_id(task.task_id), tenant_of(task.task_id)
        tx.audit.append([audit_record(by, AuditAction.TASK_IMPORT, name, at=now, tenant=tenant)])
    return None


def _export(tx: StoreTransaction, task_id: str, *, now: datetime) -> TaskExport:
    task = find_task(tx, task_id)
    run = _run(tx, task)
    text = text_of(task.input)
    past = load_past(tx, task_id)
    size = len(text) + past.size
    if run is not None:
        size += sum(map(len, run.entries)) + len(run.snapshot or "") + len(run.state or "")
    begun = first_attempt_of_run(task)
    steps = [step for row in load_steps(tx, task, limit=_PAGE) for step in ended_steps(row)]
    inbox = tx.inbox.history(task_id)
    size += sum(len(entry.event) for entry, _ in inbox)
    _check_size(task, size)
    return TaskExport(
        exported_at=now,
        task=task_details(tx, task_id, now=now),
        input=text,
        run=run,
        past=past.writes,
        inbox=[ExportedEntry(seq=each.seq, event=each.event, consumed=taken) for each, taken in inbox],
        events=_events(tx, task, size),
        # A copy does not know that the run has begun again.
        steps=[step if step.attempt >= begun else step.model_copy(update={"point": None}) for step in steps],
        shape=_shape(tx, task),
    )


def _run(tx: StoreTransaction, task: TaskRecord) -> RunRecord | None:
    head = tx.runs.load([task.task_id]).get(task.task_id)
    if head is None:
        return None
    run = run_record(task, head, tx.runs.load_journal([task.task_id]))
    if run.origin is None:
        return run
    origin = run.origin.model_copy(update={"task_id": public_id(run.origin.task_id)})
    return run.model_copy(update={"origin": origin})


def _events(tx: StoreTransaction, task: TaskRecord, size: int) -> list[TaskEvent]:
    events: list[TaskEvent] = []
    page: list[EventRecord] | None = None
    while page is None or page:
        after = -1 if not events else events[-1].index
        page = tx.events.load(task.task_id, after=after, limit=_PAGE, max_bytes=_PAGE_BYTES)
        size += sum(len(event.data) for event in page)
        _check_size(task, size)
        events += [
            TaskEvent(
                index=event.position,
                type=event.type,
                data=decode_object(event.data, what="an event"),
                terminal=event.terminal,
                attempt=event.attempt,
                step_run=event.step_run,
            )
            for event in page
        ]
    return events


def _shape(tx: StoreTransaction, task: TaskRecord) -> WorkflowShape | None:
    versions = tx.services.load_versions([task.target])
    shape = next((each.shape for each in versions if each.version == task.version), None)
    return None if shape is None else WorkflowShape.model_validate_json(shape)


def _check_size(task: TaskRecord, size: int) -> None:
    if size > MAX_EXPORT_CHARACTERS:
        raise PayloadTooLargeError(
            f"task {public_id(task.task_id)} is too large to be exported: its journal, inbox and events have"
            f" more than {MAX_EXPORT_CHARACTERS} characters; read its events with GET"
            f" /tasks/{public_id(task.task_id)}/events",
            limit_bytes=MAX_EXPORT_CHARACTERS,
        )
