"""Requests for questions: list, get, answer, refuse, assign, and callbacks."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llama_deploy.control_plane.decisions import question_rules
from llama_deploy.control_plane.decisions.cursors import decode_cursor, encode_cursor, time_in_cursor
from llama_deploy.control_plane.requests.tasks.task_requests import check_inbox_room
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.errors import CallbackNotFoundError, QuestionNotFoundError
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.question_records import CallbackRecord, QuestionHead, QuestionRecord
from llama_deploy.types.audit import Actor, AuditAction
from llama_deploy.types.epoch import to_microseconds
from llama_deploy.types.keys import public_id, tenant_of
from llama_deploy.types.owners import Owner
from llama_deploy.types.questions import (
    Answer,
    Callback,
    Question,
    QuestionPage,
    QuestionState,
)

MAX_INBOX_PAGE: Final = 200
"""How many questions a page may have."""
MAX_INBOX_PAGE_BYTES: Final = 1024 * 1024
"""How large the prompts and schemas of a page may be together, unless it has only one question."""
_TOKEN_BYTES: Final = 32


def question_view(question: QuestionRecord) -> Question:
    """Return a question as clients see it."""
    ends = [each for each in (question.deadline, question.times_out_at) if each is not None]
    types = json.loads(question.event_types)
    return Question(
        question_id=question.question_id,
        task_id=public_id(question.task_id),
        service_name=question.service_name,
        session_id=public_id(question.session_id),
        step=question.step,
        prompt=json.loads(question.prompt),
        prompt_type=question.prompt_type,
        event_type=types[0],
        event_types=types,
        answer_schema=json.loads(question.answer_schema),
        since=question.since,
        deadline=min(ends, default=None),
        default=None if question.default_answer is None else json.loads(question.default_answer),
        assignee=question.assignee,
        tags=json.loads(question.tags),
        state=question.state,
        closed_at=question.closed_at,
        reason=question.reason,
    )


@dataclass(frozen=True, slots=True)
class Inbox:
    """The open questions of all services."""

    store: StateStore
    writer: Writer

    async def list(
        self,
        *,
        owner: Owner,
        service_name: str | None = None,
        assignee: str | None = None,
        tag: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> QuestionPage:
        """Return a page of the open questions of an owner, the oldest first.

        Those of a subject are its own, and those that are assigned to it.

        Raises:
            InvalidCursorError: The cursor does not belong to a list with these filters.
        """
        facts = {"list": "inbox", "service": service_name, "assignee": assignee, "tag": tag}
        after = None if cursor is None else _position(cursor, facts)
        found = await self.store.read(
            lambda tx: tx.questions.page(
                owner=owner,
                service_name=service_name,
                assignee=assignee,
                tag=tag,
                after=after,
                limit=limit + 1,
                max_bytes=MAX_INBOX_PAGE_BYTES,
            )
        )
        page = found[:limit]
        is_last = len(found) <= limit and not (page and await self._has_more(page[-1], owner, facts))
        following = None if is_last else encode_cursor(_key(page[-1]), of=facts)
        return QuestionPage(items=list(map(question_view, page)), next_cursor=following)

    async def _has_more(self, last: QuestionRecord, owner: Owner, facts: dict[str, str | None]) -> bool:
        """Whether a page was cut off by its size."""
        more = await self.store.read(
            lambda tx: tx.questions.page(
                owner=owner,
                service_name=facts["service"],
                assignee=facts["assignee"],
                tag=facts["tag"],
                after=(last.since, last.question_id),
                limit=1,
            )
        )
        return bool(more)

    async def get(self, question_id: str) -> Question:
        """Return a question, open or not.

        Raises:
            QuestionNotFoundError: It does not exist.
        """
        return question_view(await self._find(question_id))

    async def of_task(self, task_id: str) -> QuestionPage:
        """Return the open questions of a task, the oldest first; of more than 200, these."""
        found = await self.store.read(lambda tx: tx.questions.of_task(task_id))
        return QuestionPage(items=list(map(question_view, found)))

    async def answer(
        self, question_id: str, answer: Answer, *, by: Actor | None = None, via: str | None = None
    ) -> Question:
        """Answer a question: the step that waits gets the event. An answer with a known key changes nothing.

        Args:
            question_id: The question.
            answer: The answer.
            by: Who is named in the audit log. None: nobody.
            via: What the audit log says of how it came.

        Raises:
            QuestionNotFoundError: It does not exist.
            QuestionClosedError: It is not open.
            AnswerNotAcceptedError: The answer does not fit the expected class.
            OverloadedError: The inbox of the task is full.
            PayloadTooLargeError: The answer is too large.
        """
        known = await self._find(question_id)

        def run(unit: Unit) -> None:
            task = unit.tasks.get(known.task_id)
            question = unit.questions.find(question_id)
            if question is None:
                raise _not_found(question_id)
            if question_rules.is_repeated(question, answer):
                return
            question_rules.check_open(question, task)
            event = question_rules.answer_event(question, answer)
            check_inbox_room(task)
            unit.add_to_inbox(task, event)
            answered = question_rules.closed(
                question, QuestionState.ANSWERED, at=unit.now, answer_key=answer.idempotency_key
            )
            unit.questions.put(answered)
            _note(unit, AuditAction.QUESTION_ANSWER, question, via=via)

        await self.writer.write(Command(run, _reads(known), by))
        return await self.get(question_id)

    async def refuse(self, question_id: str, reason: str, *, by: Actor | None = None) -> Question:
        """Refuse to answer a question: its task fails with `QuestionRefusedError`.

        Raises:
            QuestionNotFoundError: It does not exist.
            QuestionClosedError: It is not open.
        """
        known = await self._find(question_id)

        def run(unit: Unit) -> None:
            task = unit.tasks.get(known.task_id)
            question = unit.questions.find(question_id)
            if question is None:
                raise _not_found(question_id)
            if question.state is QuestionState.REFUSED and question.reason == reason:
                return  # a repeated request
            question_rules.check_open(question, task)
            refused = question_rules.closed(question, QuestionState.REFUSED, at=unit.now, reason=reason)
            unit.questions.put(refused)
            unit.apply(question_rules.refused(task, question, reason, at=unit.now))
            _note(unit, AuditAction.QUESTION_REFUSE, question)

        await self.writer.write(Command(run, _reads(known, may_end=True), by))
        return await self.get(question_id)

    async def assign(self, question_id: str, assignee: str | None, *, by: Actor | None = None) -> Question:
        """Say who is to answer a question. None: anybody.

        Raises:
            QuestionNotFoundError: It does not exist.
            QuestionClosedError: It is not open.
        """
        known = await self._find(question_id)

        def run(unit: Unit) -> None:
            question = unit.questions.find(question_id)
            if question is None:
                raise _not_found(question_id)
            question_rules.check_open(question, unit.tasks.get(known.task_id))
            unit.questions.assign(question_id, assignee)
            _note(unit, AuditAction.QUESTION_ASSIGN, question, assignee=assignee)

        await self.writer.write(Command(run, _reads(known), by))
        return await self.get(question_id)

    async def callback(self, question_id: str, *, base_url: str, by: Actor | None = None) -> Callback:
        """Return a new URL that answers a question once, without any other right.

        Args:
            question_id: The question.
            base_url: The URL of the control plane.
            by: Who is named in the audit log. None: nobody.

        Raises:
            QuestionNotFoundError: It does not exist.
            QuestionClosedError: It is not open.
        """
        known = await self._find(question_id)
        token = secrets.token_urlsafe(_TOKEN_BYTES)

        def run(unit: Unit) -> None:
            question = unit.questions.find(question_id)
            if question is None:
                raise _not_found(question_id)
            question_rules.check_open(question, unit.tasks.get(known.task_id))
            unit.questions.add_callback(CallbackRecord(_hash(token), question_id, known.task_id, unit.now))
            _note(unit, AuditAction.QUESTION_CALLBACK, question)

        await self.writer.write(Command(run, _reads(known), by))
        return Callback(url=f"{base_url}/callbacks/{token}", question_id=question_id)

    async def call_back(self, token: str, event: dict[str, Any], *, by: Actor | None = None) -> Question:
        """Answer the question of a callback. The same request again changes nothing.

        Raises:
            CallbackNotFoundError: There is no such callback.
            LlamaDeployError: As `answer`.
        """
        hashed = _hash(token)
        callback = await self._find_callback(hashed)
        text = json.dumps(event, sort_keys=True)
        key = f"callback {_hash(hashed + text)}"
        answer = Answer(event=event, idempotency_key=key)
        return await self.answer(callback.question_id, answer, by=by, via="callback")

    async def check_callback(self, token: str) -> None:
        """Do nothing if there is a callback with this token.

        Raises:
            CallbackNotFoundError: There is none.
        """
        await self._find_callback(_hash(token))

    async def _find_callback(self, hashed: str) -> CallbackRecord:
        callback = await self.store.read(lambda tx: tx.questions.find_callback(hashed))
        if callback is None:
            raise CallbackNotFoundError("there is no such callback; ask for a new one at its question")
        return callback

    async def _find(self, question_id: str) -> QuestionRecord:
        found = await self.store.read(lambda tx: tx.questions.load([question_id]))
        if question_id not in found:
            raise _not_found(question_id)
        return found[question_id]


def _reads(question: QuestionRecord, *, may_end: bool = False) -> Reads:
    task_id = question.task_id
    return Reads.of_tasks(task_id, may_end=may_end) | Reads(
        inboxes={task_id}, questions={question.question_id}
    )


def _note(unit: Unit, action: AuditAction, question: QuestionHead, **details: str | None) -> None:
    """Note in the audit log what was done with a question."""
    tenant, task = tenant_of(question.task_id), public_id(question.task_id)
    unit.audit.note_public(action, question.question_id, tenant=tenant, task=task, **details)


def _not_found(question_id: str) -> QuestionNotFoundError:
    return QuestionNotFoundError(f"there is no question {question_id}", question_id=question_id)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def _key(question: QuestionRecord) -> tuple[int, str]:
    return to_microseconds(question.since), question.question_id


def _position(cursor: str, facts: dict[str, str | None]) -> tuple[datetime, str]:
    since, question_id = decode_cursor(cursor, of=facts, kinds=(int, str))
    return time_in_cursor(since), str(question_id)
