"""What the writes of a run have replaced, read from the store. Only forks need it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import ValidationError

from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import RunPastRecord
from llama_deploy.types.keys import public_id
from llama_deploy.types.run_past import PastWrite, ReplacedJournal
from llama_deploy.types.state_changes import StateChange
from llama_deploy.types.validation import describe_validation_error

logger = logging.getLogger(__name__)


class StoredPast(NamedTuple):
    """What is stored of the past of a run."""

    writes: Sequence[PastWrite]
    """In order, without what cannot be read."""
    unreadable: Sequence[int]
    """Of which writes something cannot be read: how many preceded each of them."""
    size: int
    """About how many bytes all of it has."""


def load_past(tx: StoreTransaction, task_id: str) -> StoredPast:
    """Return what the writes of a task's run have replaced.

    What cannot be read is logged and left out, as if it had not been kept: a newer release may have written
    it, and only forks from before the write need it.
    """
    records = tx.runs.load_past(task_id)
    writes: list[PastWrite] = []
    unreadable: list[int] = []
    for record in records:
        write = PastWrite(seq=record.seq, snapshots=record.snapshots)
        try:
            write.state_change = _state_change(record)
            write.replaced = _replaced(record)
        except ValueError as exc:
            why = describe_validation_error(exc) if isinstance(exc, ValidationError) else exc
            unreadable.append(write.writes_before)
            logger.warning(
                "what write %d of the journal of task %s has replaced cannot be read, so the task cannot be"
                " forked from before it: %s",
                write.writes_before + 1,
                public_id(task_id),
                why,
                extra={"action": "past_unreadable", "task_id": public_id(task_id)},
            )
        if write.state_change is not None or write.replaced is not None:
            writes.append(write)
    return StoredPast(writes, unreadable, sum(each.size for each in records))


def _state_change(record: RunPastRecord) -> StateChange | None:
    return None if record.state_change is None else StateChange.model_validate_json(record.state_change)


def _replaced(record: RunPastRecord) -> ReplacedJournal | None:
    return None if record.replaced is None else ReplacedJournal.unpack(record.replaced)
