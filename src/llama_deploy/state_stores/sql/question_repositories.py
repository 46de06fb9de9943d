"""Questions in SQL."""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from llama_deploy.state_stores.question_records import CallbackRecord, QuestionHead, QuestionRecord
from llama_deploy.state_stores.question_repository import QuestionRepository
from llama_deploy.state_stores.sql.access import IDS, SQLRepository, chunks, ids, limit, pad
from llama_deploy.state_stores.sql.queries import Mapper, Query, Update
from llama_deploy.state_stores.sql.sizes import utf8_length
from llama_deploy.state_stores.sql.tables import (
    UtcMicroseconds,
    callbacks,
    question_is_of_tenant,
    question_is_open,
    question_tags,
    questions,
)
from llama_deploy.types.owners import Owner
from llama_deploy.types.questions import QuestionState

_QUESTION = Mapper(QuestionRecord, questions)
_HEAD = Mapper(QuestionHead, questions)
_CALLBACK = Mapper(CallbackRecord, callbacks)

_BY_ID = Query.unlocked(_QUESTION.where(questions.c.question_id.in_(ids)))
_HEADS_BY_ID = Query.unlocked(_HEAD.where(questions.c.question_id.in_(ids)))
_OPEN_HEADS = Query.unlocked(_HEAD.where(questions.c.task_id.in_(ids), question_is_open))
_OPEN_IDS = Query.unlocked(
    sa.select(questions.c.task_id, questions.c.question_id).where(
        questions.c.task_id.in_(ids), question_is_open
    )
)
_size = utf8_length(questions.c.prompt) + utf8_length(questions.c.answer_schema)
_OF_TASK = Query.unlocked(
    sa.select(questions.c.question_id, _size)
    .where(questions.c.task_id == sa.bindparam("task_id"), question_is_open)
    .order_by(questions.c.since, questions.c.question_id)
    .limit(limit)
)

_due = (
    _HEAD.where(question_is_open, questions.c.deadline.is_not(None))
    .order_by(questions.c.deadline, questions.c.question_id)
    .limit(limit)
)
_DUE = Query.unlocked(_due)
_DUE_BEFORE = Query.unlocked(
    _due.where(questions.c.deadline < sa.bindparam("due_before", type_=UtcMicroseconds()))
)

_FIRST: Final = (datetime(1970, 1, 1, tzinfo=UTC), "")


class _Owned(StrEnum):
    """Of which questions a list is."""

    BY_ANYBODY = "anybody"
    BY_DEFAULT_TENANT = "default_tenant"
    BY_TENANT = "tenant"
    BY_SUBJECT = "subject"
    ASSIGNED = "assigned"
    """Those of a tenant that are assigned to a subject."""

    @classmethod
    def by(cls, owner: Owner | None) -> Sequence[_Owned]:
        if owner is None:
            return [_Owned.BY_ANYBODY]
        if owner.subject is not None:
            return [_Owned.BY_SUBJECT, _Owned.ASSIGNED]
        return [_Owned.BY_TENANT if owner.tenant else _Owned.BY_DEFAULT_TENANT]


_has_tenant = questions.c.tenant == sa.bindparam("tenant")
_OWNED: Final[Mapping[_Owned, Sequence[sa.ColumnElement[bool]]]] = {
    _Owned.BY_ANYBODY: [],
    _Owned.BY_DEFAULT_TENANT: [_has_tenant],
    _Owned.BY_TENANT: [question_is_of_tenant, _has_tenant],
    _Owned.BY_SUBJECT: [
        questions.c.subject.is_not(None),
        _has_tenant,
        questions.c.subject == sa.bindparam("subject"),
    ],
    _Owned.ASSIGNED: [_has_tenant, questions.c.assignee == sa.bindparam("subject")],
}


@cache
def _page(owned: _Owned, *, by_service: bool, by_assignee: bool, by_tag: bool) -> Query:
    """Return the query of the ids, sizes and times of the questions on a page."""
    key: tuple[sa.ColumnElement[Any], ...] = (questions.c.since, questions.c.question_id)
    source: sa.FromClause = questions
    conditions: list[sa.ColumnElement[bool]] = [question_is_open, *_OWNED[owned]]
    if by_tag:
        key = (question_tags.c.since, question_tags.c.question_id)
        source = question_tags.join(questions, questions.c.question_id == question_tags.c.question_id)
        conditions.append(question_tags.c.tag == sa.bindparam("tag"))
    if by_service:
        conditions.append(questions.c.service_name == sa.bindparam("service_name"))
    if by_assignee:
        conditions.append(questions.c.assignee == sa.bindparam("assignee"))
    after = sa.tuple_(sa.bindparam("after_since", type_=UtcMicroseconds()), sa.bindparam("after_id"))
    return Query.unlocked(
        sa.select(questions.c.question_id, _size, questions.c.since)
        .select_from(source)
        .where(*conditions, sa.tuple_(*key) > after)
        .order_by(*key)
        .limit(limit)
    )


_INSERT = {
    dialect.dialect.name: dialect.insert(questions).on_conflict_do_update(
        index_elements=[questions.c.question_id],
        set_={"state": QuestionState.OPEN, "closed_at": None},
        where=questions.c.state == QuestionState.WITHDRAWN,
    )
    for dialect in (sqlite, postgresql)
}
_tag_of_open = sa.select(
    sa.bindparam("tag", type_=sa.Text()), questions.c.since, questions.c.question_id
).where(questions.c.question_id == sa.bindparam("key"), question_is_open)
_INSERT_TAGS = {
    dialect.dialect.name: dialect.insert(question_tags)
    .from_select(["tag", "since", "question_id"], _tag_of_open)
    .on_conflict_do_nothing()
    for dialect in (sqlite, postgresql)
}
_UPDATE = Update(_HEAD, key="question_id", fields=("state", "closed_at", "reason", "answer_key"))
_DELETE_TAGS = sa.delete(question_tags).where(question_tags.c.question_id.in_(ids))
_closing = {
    "state": sa.bindparam("new_state", type_=questions.c.state.type),
    "closed_at": sa.bindparam("at", type_=UtcMicroseconds()),
}
_CLOSE = sa.update(questions).where(questions.c.question_id.in_(ids), question_is_open).values(_closing)
_END_TAGS = sa.delete(question_tags).where(
    question_tags.c.question_id.in_(
        sa.select(questions.c.question_id).where(questions.c.task_id.in_(ids), question_is_open)
    )
)
_END = sa.update(questions).where(questions.c.task_id.in_(ids), question_is_open).values(_closing)
_ASSIGN = (
    sa.update(questions)
    .where(questions.c.question_id == sa.bindparam("key"), question_is_open)
    .values(assignee=sa.bindparam("name"))
)
_INSERT_CALLBACK = sa.insert(callbacks)
_CALLBACK_BY_TOKEN = Query.unlocked(_CALLBACK.where(callbacks.c.token_hash == sa.bindparam("token_hash")))


class SQLQuestions(SQLRepository, QuestionRepository):
    """Questions in the tables `questions`, `question_tags` and `callbacks`."""

    def load(self, question_ids: Collection[str]) -> dict[str, QuestionRecord]:
        found = map(_QUESTION.record, self._access.rows_by_ids(_BY_ID, question_ids))
        return {question.question_id: question for question in found}

    def heads(self, question_ids: Collection[str]) -> list[QuestionHead]:
        return [_HEAD.record(row) for row in self._access.rows_by_ids(_HEADS_BY_ID, question_ids)]

    def open_heads(self, task_ids: Collection[str]) -> list[QuestionHead]:
        found = map(_HEAD.record, self._access.rows_by_ids(_OPEN_HEADS, task_ids))
        return sorted(found, key=attrgetter("since", "question_id"))

    def open_ids(self, task_ids: Collection[str]) -> list[tuple[str, str]]:
        rows = self._access.rows_by_ids(_OPEN_IDS, task_ids)
        return [(task_id, question_id) for task_id, question_id in rows]

    def of_task(
        self, task_id: str, *, limit: int = 200, max_bytes: int = 1024 * 1024
    ) -> list[QuestionRecord]:
        rows = self._access.rows(_OF_TASK, {"task_id": task_id, "limit": limit})
        return self._some(rows, max_bytes)

    def page(
        self,
        *,
        owner: Owner | None = None,
        service_name: str | None = None,
        assignee: str | None = None,
        tag: str | None = None,
        after: tuple[datetime, str] | None = None,
        limit: int = 50,
        max_bytes: int = 1024 * 1024,
    ) -> list[QuestionRecord]:
        filters = {"service_name": service_name, "assignee": assignee, "tag": tag}
        since, question_id = after or _FIRST
        parameters: dict[str, object] = {name: value for name, value in filters.items() if value is not None}
        parameters |= {"after_since": since, "after_id": question_id, "limit": limit}
        if owner is not None:
            parameters |= {"tenant": owner.tenant, "subject": owner.subject}
        queries = [
            _page(
                owned,
                by_service=service_name is not None,
                by_assignee=assignee is not None,
                by_tag=tag is not None,
            )
            for owned in _Owned.by(owner)
        ]
        found = {
            (row[2], row[0]): row[1] for query in queries for row in self._access.rows(query, parameters)
        }
        return self._some([(key[1], found[key]) for key in sorted(found)[:limit]], max_bytes)

    def due(self, *, due_before: datetime | None = None, limit: int = 1000) -> list[QuestionHead]:
        if due_before is None:
            rows = self._access.rows(_DUE, {"limit": limit})
        else:
            rows = self._access.rows(_DUE_BEFORE, {"due_before": due_before, "limit": limit})
        return [_HEAD.record(row) for row in rows]

    def insert(self, questions: Sequence[QuestionRecord]) -> None:
        self._access.put(_INSERT, _QUESTION.rows(questions))
        self._tag([(each.question_id, each.tags) for each in questions])

    def update(self, questions: Sequence[QuestionHead]) -> None:
        self._access.update(_UPDATE, questions)
        self._access.execute_for((_DELETE_TAGS,), [each.question_id for each in questions])
        reopened = [each.question_id for each in questions if each.state is QuestionState.OPEN]
        if reopened:
            self._tag([(each.question_id, each.tags) for each in self.load(reopened).values()])

    def close(self, question_ids: Collection[str], state: QuestionState, *, at: datetime) -> None:
        self._change(_CLOSE, question_ids, state, at)
        self._access.execute_for((_DELETE_TAGS,), question_ids)

    def end(self, task_ids: Collection[str], *, at: datetime) -> None:
        self._access.execute_for((_END_TAGS,), task_ids)
        self._change(_END, task_ids, QuestionState.ENDED, at)

    def assign(self, question_id: str, assignee: str | None) -> None:
        self._access.write(_ASSIGN, [{"key": question_id, "name": assignee}])

    def put_callback(self, callback: CallbackRecord) -> None:
        self._access.write(_INSERT_CALLBACK, _CALLBACK.rows([callback]))

    def find_callback(self, token_hash: str) -> CallbackRecord | None:
        rows = self._access.rows(_CALLBACK_BY_TOKEN, {"token_hash": token_hash})
        return next((_CALLBACK.record(row) for row in rows), None)

    def _some(self, rows: Iterable[Sequence[Any]], max_bytes: int) -> list[QuestionRecord]:
        """Return the first questions of rows with an id and a size: at least one, at most so many bytes."""
        listed: list[str] = []
        left = max_bytes
        for question_id, size, *_ in rows:
            left -= size
            if listed and left < 0:
                break
            listed.append(question_id)
        found = self.load(listed)
        return [found[each] for each in listed]

    def _tag(self, pairs: Sequence[tuple[str, str]]) -> None:
        rows: list[dict[str, object]] = [
            {"key": question_id, "tag": tag} for question_id, tags in pairs for tag in _tags_in(tags)
        ]
        self._access.put(_INSERT_TAGS, rows)

    def _change(self, statement: sa.Update, ids: Collection[str], state: QuestionState, at: datetime) -> None:
        for chunk in chunks(ids):
            parameters = {IDS: pad(chunk), "new_state": state, "at": at}
            self._access.connection.execute(statement, parameters)


def _tags_in(text: str) -> list[str]:
    if text == "[]":
        return []
    return [str(each) for each in json.loads(text)]
