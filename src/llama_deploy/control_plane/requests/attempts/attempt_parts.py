"""What an attempt starts from, in replies of a limited size.

The answer to a claim holds the input, the session's state, the inbox and the run's journal. What does not fit
is left out of the answer, and the owner of the attempt fetches it in slices.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from pydantic import TypeAdapter

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.routing import run_input, run_input_of_lean
from llama_deploy.control_plane.storage.run_rows import run_record
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.errors import TaskNotFoundError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.large_values import Deferred, text_of
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import EventDefinition
from llama_deploy.types.instance_protocol import (
    AttemptPart,
    ClaimReply,
    InboxEntry,
    PartReply,
    PartRequest,
    RunRecord,
)
from llama_deploy.types.keys import public_id

MAX_CLAIM_CHARACTERS: Final = 8 * 1024 * 1024
"""How much the answers to the claims of one request may hold together."""
MAX_SLICE_CHARACTERS: Final = 2 * 1024 * 1024
"""How much of a part one answer may hold."""
_MAX_READS: Final = 2
"""How many slices are read at the same time: for each of them, the whole part is in memory."""
_INBOX: Final = TypeAdapter(list[InboxEntry])


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a claim with all its parts, and how many characters each takes."""

    reply: ClaimReply
    sizes: Mapping[AttemptPart, int]
    unread: frozenset[AttemptPart] = frozenset()
    """Parts that the answer does not have, because they are too large to be read."""


def granted(unit: Unit, task: TaskRecord, *, token: str) -> Grant:
    """Return the answer to a claim, without the parts for which the transaction has no room.

    Raises:
        UnavailableError: The run of the task cannot be read.
    """
    unread: set[AttemptPart] = set()

    def is_read(part: AttemptPart, size: int) -> bool:
        fits = unit.budget.take(size)
        if not fits:
            unread.add(part)
        return fits

    run = unit.runs.record(task)
    if isinstance(run, Deferred):
        unread.add(AttemptPart.RUN)
        run = None
    text = run_input_of_lean(task)
    if isinstance(text, Deferred):
        text = run_input(unit.tasks.whole(task)) if is_read(AttemptPart.INPUT, text.size) else ""
    session = unit.sessions.get(task.session_id)
    state = "{}"
    if not isinstance(session.state, Deferred) or is_read(AttemptPart.SESSION_STATE, session.state.size):
        state = unit.sessions.state_of(session)
    has_inbox = is_read(AttemptPart.INBOX, unit.inbox.size_of(task.task_id))
    reply = ClaimReply(
        granted=True,
        token=token,
        input=text,
        session_state=json.loads(state),
        is_parallel=session.policy.may_overlap,
        state_origin=session.origin,
        inbox=unit.inbox.unconsumed([task.task_id]) if has_inbox else [],
        inbox_seq=task.inbox_length,
        run=run,
        volatile=task.volatile_reason,
        questions=unit.questions.open_ids(task),
        subject=task.subject,
    )
    return Grant(reply, _sizes_of(reply, session_state=state), frozenset(unread))


def _sizes_of(reply: ClaimReply, *, session_state: str) -> dict[AttemptPart, int]:
    """Return how many characters each part of an answer takes, the state's as it is stored."""
    return {
        AttemptPart.INPUT: len(reply.input),
        AttemptPart.SESSION_STATE: len(session_state),
        AttemptPart.INBOX: sum(len(entry.event.event_obj_str) for entry in reply.inbox),
        AttemptPart.RUN: 0 if reply.run is None else _size_of_run(reply.run),
    }


def _size_of_run(run: RunRecord) -> int:
    return sum(map(len, run.entries)) + len(run.snapshot or "") + len(run.state or "")


def limited(grants: Iterable[Grant | ClaimReply]) -> list[ClaimReply]:
    """Return the answers to the claims of one request, without the parts that are too large together."""
    budget = MAX_CLAIM_CHARACTERS
    replies: list[ClaimReply] = []
    for each in grants:
        grant = each if isinstance(each, Grant) else Grant(each, {})
        reply = grant.reply
        omitted: list[AttemptPart] = []
        for part, size in grant.sizes.items():
            if size > budget or part in grant.unread:
                omitted.append(part)
            else:
                budget -= size
        if omitted:
            fields = {name: value for name, value in reply if name not in omitted}
            reply = ClaimReply.model_construct(**{**fields, "omitted": omitted})
        replies.append(reply)
    return replies


class AttemptParts:
    """Reads the parts of an attempt for its owner."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._reads = asyncio.Semaphore(_MAX_READS)

    async def read(self, request: PartRequest) -> PartReply:
        """Return a slice of the JSON text of a part.

        Raises:
            TaskNotFoundError: The task was deleted.
            FencedOutError: The sender does not own the attempt.
        """
        # The store runs this in a thread of its own, so a large part does not block the event loop.
        async with self._reads:
            return await self._store.read(lambda tx: _slice(tx, request))


def _slice(tx: StoreTransaction, request: PartRequest) -> PartReply:
    text = _text(tx, request)
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    # A part that has changed since its first slice was read is read from its beginning.
    start = request.offset if request.digest in (None, digest) else 0
    return PartReply(text=text[start : start + MAX_SLICE_CHARACTERS], size=len(text), digest=digest)


def _text(tx: StoreTransaction, request: PartRequest) -> str:
    task = tx.tasks.load([request.task_id]).get(request.task_id)
    if task is None:
        shown = public_id(request.task_id)
        raise TaskNotFoundError(f"there is no task {shown}", task_id=shown)
    lifecycle.check_owner(task, attempt=request.attempt, token=request.token)
    match request.part:
        case AttemptPart.INPUT:
            return run_input(task)
        case AttemptPart.SESSION_STATE:
            return text_of(tx.sessions.load([task.session_id])[task.session_id].state)
        case AttemptPart.INBOX:
            return _inbox(tx, task)
        case AttemptPart.RUN:
            return _run(tx, task)


def _inbox(tx: StoreTransaction, task: TaskRecord) -> str:
    entries = [
        InboxEntry(
            task_id=entry.task_id, seq=entry.seq, event=EventDefinition.model_validate_json(entry.event)
        )
        for entry in tx.inbox.load([task.task_id])
    ]
    return _INBOX.dump_json(entries).decode()


def _run(tx: StoreTransaction, task: TaskRecord) -> str:
    head = tx.runs.load([task.task_id]).get(task.task_id)
    if head is None:
        return "null"
    return run_record(task, head, tx.runs.load_journal([task.task_id])).model_dump_json()
