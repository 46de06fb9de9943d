"""What an exported task is in another store: rows that nothing changes any more. No I/O, no clock."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from llama_deploy.errors import InvalidRequestError
from llama_deploy.state_stores.records import (
    EventRecord,
    InboxRecord,
    JournalRecord,
    RunHeadRecord,
    RunPastRecord,
    StepsRecord,
    TaskRecord,
)
from llama_deploy.types.epoch import to_microseconds
from llama_deploy.types.ids import check_id
from llama_deploy.types.instance_protocol import RunOrigin, RunRecord
from llama_deploy.types.json_values import decode_object, encode_json, utf8_bytes
from llama_deploy.types.keys import internal_key, public_id, tenant_of
from llama_deploy.types.owners import Owner
from llama_deploy.types.run_past import PastWrite
from llama_deploy.types.step_history import StepEnd, encode_steps, read_step_id
from llama_deploy.types.task_export import TaskExport
from llama_deploy.types.task_lists import EndedStep
from llama_deploy.types.validation import describe_validation_error
from llama_deploy.types.workflow_shape import RunNeeds

MAX_NUMBER: Final = 2**52
"""The greatest number that is stored of an exported task. Retries of the task count on from it."""
_MILLISECOND: Final = timedelta(milliseconds=1)


class ImportedTask(NamedTuple):
    """The rows of an imported task."""

    task: TaskRecord
    events: Sequence[EventRecord]
    inbox: Sequence[InboxRecord]
    consumed: Sequence[tuple[str, int]]
    head: RunHeadRecord | None
    journal: Sequence[JournalRecord]
    past: Sequence[RunPastRecord]
    steps: Sequence[StepsRecord]


def imported(
    document: TaskExport, *, task_id: str, session_id: str, at: datetime, subject: str | None = None
) -> ImportedTask:
    """Return the rows of an exported task.

    Args:
        document: The exported task.
        task_id: The key of the copy.
        session_id: The key of its session.
        at: The present time.
        subject: Whose the copy is.

    Raises:
        InvalidRequestError: The task had not ended, or the document contradicts itself.
    """
    _check(document)
    view, run = document.task, document.run
    result = None if view.result is None else view.result.model_copy(update={"task_id": task_id})
    task = TaskRecord(
        task_id=task_id,
        session_id=session_id,
        service_name=view.service_name,
        input=document.input,
        status=view.status,
        created_at=view.created_at,
        status_changed_at=at,  # from here on counts how long it is kept, and feeds tell it
        max_attempts=1,
        tags=json.dumps(view.tags),
        attempt=view.attempt,
        stream_length=document.events[-1].index + 1,
        inbox_length=len(document.inbox),
        has_run=run is not None,
        journal_length=0 if run is None else run.next_seq,
        running_seconds=0.0 if run is None else run.running_seconds,
        finished_at=view.finished_at,
        result=None if result is None else result.model_dump_json(),
        durability=view.durability,
        volatile_reason=view.volatile_reason,
        version=view.version,
        started_at=view.started_at,
        progress=view.progress,
        imported_at=at,
        tenant=tenant_of(task_id),
        subject=subject,
    )
    return ImportedTask(
        task=task,
        events=[
            EventRecord(
                task_id,
                each.index,
                each.type,
                encode_json(each.data),
                each.terminal,
                each.attempt,
                each.step_run,
            )
            for each in document.events
        ],
        inbox=[InboxRecord(task_id, each.seq, each.event) for each in document.inbox],
        consumed=[(task_id, each.seq) for each in document.inbox if each.consumed],
        head=None if run is None else _head(run, task_id, of=view.task_id),
        journal=[] if run is None else _journal(run, task_id),
        past=[_past(each, task_id) for each in document.past],
        steps=list(_steps(document.steps, task_id)),
    )


def _head(run: RunRecord, task_id: str, *, of: str) -> RunHeadRecord:
    # Under another id, the texts stay signed for the task that has begun the run.
    origin = run.origin
    if origin is None and public_id(task_id) != of:
        origin = RunOrigin(task_id=of, renewals=[])
    if origin is not None:  # the texts are signed for keys
        key = internal_key(tenant_of(task_id), origin.task_id)
        origin = origin.model_copy(update={"task_id": key})
    return RunHeadRecord(
        task_id=task_id,
        fingerprint=run.header.fingerprint,
        library_version=run.header.library_version,
        snapshot=run.snapshot,
        state=run.state,
        needs=None if run.needs is None else run.needs.model_dump_json(exclude_defaults=True),
        origin=None if origin is None else origin.model_dump_json(),
        snapshots=run.snapshots,
    )


def _past(exported: PastWrite, task_id: str) -> RunPastRecord:
    change = None if exported.state_change is None else exported.state_change.model_dump_json()
    replaced = None if exported.replaced is None else exported.replaced.pack()
    size = utf8_bytes(change or "") + len(replaced or b"")
    return RunPastRecord(task_id, exported.seq, exported.snapshots, size, change, replaced)


def _journal(run: RunRecord, task_id: str) -> list[JournalRecord]:
    first = run.next_seq - len(run.entries)
    return [JournalRecord(task_id, seq, entry) for seq, entry in enumerate(run.entries, start=first)]


def _steps(steps: Sequence[EndedStep], task_id: str) -> list[StepsRecord]:
    """Return a row for each gap in the numbers of steps, so that all keep their ids."""
    counts: Counter[int] = Counter()
    ends: dict[tuple[int, int], StepEnd] = {}
    for step in steps:
        counts[step.attempt] += 1
        # An older release has exported the steps without ids.
        ends[read_step_id(step.step_id or "") or (step.attempt, counts[step.attempt])] = _end(step)
    rows: list[StepsRecord] = []
    runs = groupby(enumerate(sorted(ends)), lambda each: (each[1][0], each[1][1] - each[0]))
    for (attempt, _), group in runs:
        keys = [key for _, key in group]
        rows.append(StepsRecord(task_id, attempt, keys[0][1] - 1, encode_steps(map(ends.__getitem__, keys))))
    return rows


def _end(step: EndedStep) -> StepEnd:
    began = to_microseconds(step.began_at) // 1000
    took = (step.ended_at - step.began_at) // _MILLISECOND
    return StepEnd(step.step, began, took, step.events, step.error, step.point)


def _check(document: TaskExport) -> None:
    """Raise `InvalidRequestError` if a document is not that of an ended task."""
    view, run = document.task, document.run
    if not view.status.is_terminal or view.finished_at is None or view.result is None:
        raise InvalidRequestError(
            f"task {view.task_id} had not ended when it was exported: it was {view.status.value}; only ended"
            " tasks can be imported, and a replay needs no import"
        )
    decode_object(document.input, what="the input of the exported task")
    _check_texts(document)
    if not all(0 <= number <= MAX_NUMBER for number in _numbers(document)):
        raise InvalidRequestError(
            f"a number of the exported task is less than 0 or greater than {MAX_NUMBER}: of an attempt, a"
            " step, an event, or a journal"
        )
    indexes = [event.index for event in document.events]
    terminal = [event.index for event in document.events if event.terminal]
    # Events may have expired before the export.
    if not indexes or indexes != sorted({*indexes}) or indexes[0] < 0 or terminal != indexes[-1:]:
        raise InvalidRequestError(
            "the events of the exported task are not numbered in order up to one that is terminal"
        )
    if [entry.seq for entry in document.inbox] != list(range(1, len(document.inbox) + 1)):
        raise InvalidRequestError("the inbox of the exported task is not numbered from 1 without gaps")
    if run is not None and run.origin is not None:
        _check_id(run.origin.task_id)
    if run is not None and run.next_seq < len(run.entries):
        raise InvalidRequestError("the journal of the exported task has more entries than it says")
    _check_past(document.past)


def _check_past(past: Sequence[PastWrite]) -> None:
    if len({(each.seq, each.snapshots) for each in past}) < len(past):
        raise InvalidRequestError("two writes of the exported task have replaced something at the same place")
    for each in past:
        if each.replaced is not None and each.replaced.needs is not None:
            try:
                RunNeeds.model_validate_json(each.replaced.needs)
            except ValidationError as exc:
                raise InvalidRequestError(
                    f"what a replaced journal of the exported task needs: {describe_validation_error(exc)}"
                ) from exc


def _check_texts(document: TaskExport) -> None:
    try:
        document.model_dump_json()
    except ValueError as exc:
        raise InvalidRequestError(
            "a text of the exported task has a lone surrogate, which is not stored"
        ) from exc
    if any("\0" in text for text in _texts(document)):
        raise InvalidRequestError("a text of the exported task has the character U+0000, which is not stored")


def _numbers(document: TaskExport) -> Iterator[int]:
    """Yield the numbers that are stored as such."""
    run = document.run
    yield document.task.attempt
    for event in document.events:
        yield from (event.index, event.attempt or 0, 0 if event.step_run is None else event.step_run + 1)
    for step in document.steps:
        yield from (step.attempt, *(read_step_id(step.step_id or "") or ()))
    if run is not None:
        yield from (run.next_seq, run.snapshots)
    for each in document.past:
        yield from (each.seq, each.snapshots, 0 if each.replaced is None else each.replaced.first)


def _texts(document: TaskExport) -> Iterator[str]:
    """Yield the texts that are stored as they are."""
    view, run = document.task, document.run
    yield from (document.input, view.service_name, *view.tags)
    yield from filter(None, (view.volatile_reason, view.version, view.progress))
    yield from (entry.event for entry in document.inbox)
    yield from (event.type for event in document.events)
    if run is not None:
        yield from (run.header.fingerprint, run.header.library_version, *run.entries)
        yield from filter(None, (run.snapshot, run.state, run.origin and run.origin.task_id))
    for step in document.steps:
        yield from filter(None, (step.step, step.error, step.point))
    for each in document.past:
        if (change := each.state_change) is not None:
            yield from (change.before, change.after, *(text for _, _, text in change.splices))
        if (replaced := each.replaced) is not None:
            yield from (replaced.fingerprint, replaced.library_version, *replaced.entries)
            yield from filter(None, (replaced.snapshot, replaced.needs))


def key_of(document: TaskExport, owner: Owner) -> str:
    """Return the key of an exported task, for an owner.

    Raises:
        InvalidRequestError: Its id cannot be one.
    """
    return owner.key_of(_check_id(document.task.task_id))


def _check_id(text: str) -> str:
    try:
        return check_id(text)
    except ValueError as exc:
        raise InvalidRequestError(f"the id of the exported task: {exc}") from exc


def content_of(document: TaskExport) -> dict[str, Any]:
    """Return what makes two exports those of the same task, wherever they are stored."""
    facts = document.model_dump(
        mode="json",
        include={"input": True, "inbox": True, "events": True, "steps": True, "run": True},
        # Where the run comes from depends on the store, and older releases do not export the rest.
        exclude={"run": {"origin", "snapshots"}, "steps": {"__all__": {"step_id", "point"}}},
    )
    view = document.task.model_dump(
        mode="json",
        include={"service_name", "status", "attempt", "created_at", "finished_at", "error", "tags"},
    )
    return {**facts, "task": view}
