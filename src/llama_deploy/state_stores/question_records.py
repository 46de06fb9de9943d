"""The rows of questions in a state store."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from llama_deploy.types.questions import QuestionState


class QuestionRecord(NamedTuple):
    """A question of a task."""

    question_id: str
    task_id: str
    session_id: str
    service_name: str
    """The service that runs the task."""
    since: datetime
    event_types: str
    """JSON list: the qualified names of the classes that the answer may have, the expected one first."""
    prompt: str
    """JSON object: the data of the asking event."""
    answer_schema: str
    """The JSON schema of the answer."""
    state: QuestionState = QuestionState.OPEN
    step: str | None = None
    checks: str | None = None
    """JSON object: by class, a schema that all accepted answers satisfy. None: nothing is checked."""
    requirements: str | None = None
    """JSON object: the fields of the answer that must have these values. None: they cannot be compared."""
    prompt_type: str | None = None
    deadline: datetime | None = None
    """When the control plane answers with the default, or fails the task."""
    times_out_at: datetime | None = None
    """When the run itself stops waiting."""
    default_answer: str | None = None
    """JSON object: the fields of the answer at the deadline."""
    assignee: str | None = None
    tags: str = "[]"
    """JSON list."""
    closed_at: datetime | None = None
    reason: str | None = None
    """Why it was refused."""
    answer_key: str | None = None
    """The idempotency key of the answer."""
    tenant: str = ""
    subject: str | None = None
    """That of its task."""


class QuestionHead(NamedTuple):
    """What decisions read of a question: the fields of a `QuestionRecord` that are small."""

    question_id: str
    task_id: str
    since: datetime
    event_types: str
    state: QuestionState
    checks: str | None
    requirements: str | None
    deadline: datetime | None
    times_out_at: datetime | None
    default_answer: str | None
    closed_at: datetime | None
    reason: str | None
    answer_key: str | None


class CallbackRecord(NamedTuple):
    """A URL that answers one question once."""

    token_hash: str
    """SHA-256 of the token, which itself is not stored."""
    question_id: str
    task_id: str
    """That of the question."""
    created_at: datetime
