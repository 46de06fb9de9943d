"""Questions on the wire: what runs ask, and what people and programs answer."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.types.exact_values import MAX_NUMBER, Count, Flag, Timestamp
from llama_deploy.types.json_values import JsonObject

MAX_ASSIGNEE_CHARACTERS: Final = 200
"""How long the name of an assignee may be."""
MAX_TAG_CHARACTERS: Final = 100
"""How long a tag may be."""
MAX_TAGS: Final = 20
"""How many tags a question may have."""
MAX_REFUSAL_CHARACTERS: Final = 2000
"""How long the reason of a refusal may be."""

LINE_PATTERN: Final = r"^[^\x00-\x1f\x7f]+$"
"""Text on one line. Not every database stores the first of these characters."""
_TEXT_PATTERN: Final = r"^[^\x00]+$"

Assignee = Annotated[str, Field(min_length=1, max_length=MAX_ASSIGNEE_CHARACTERS, pattern=LINE_PATTERN)]


class QuestionState(StrEnum):
    """What has become of a question. Only an open one can be answered."""

    OPEN = "open"
    ANSWERED = "answered"
    REFUSED = "refused"
    """Somebody has refused to answer it, which has failed its task."""
    EXPIRED = "expired"
    """Its deadline has passed. Its default was the answer, or the task has failed."""
    WITHDRAWN = "withdrawn"
    """The run does not wait for the answer any more."""
    ENDED = "ended"
    """The task has ended without the answer."""


class AskedQuestion(BaseModel):
    """A question as the instance reports it that runs the task."""

    question_id: str
    """The same in each attempt."""
    step: str | None = None
    """The step that waits. None: the run continues with any step that takes the answer."""
    event_types: list[str]
    """The qualified names of the classes that the answer may have, the expected one first."""
    answer_schema: JsonObject = Field(default_factory=dict)
    """The JSON schema of the answer."""
    check: JsonObject | None = None
    """A schema that all answers satisfy which the run accepts. None: nothing is checked."""
    requirements: JsonObject | None = Field(default_factory=dict)
    """The fields of the answer that must have these values. None: they cannot be compared as JSON."""
    prompt: dict[str, Any] = Field(default_factory=dict)
    """The data of the asking event."""
    prompt_type: str | None = None
    """The class name of the asking event. None: there is none."""
    deadline: Timestamp | None = None
    """When the control plane answers with the default, or fails the task. None: never."""
    times_out_at: Timestamp | None = None
    """When the run itself stops waiting. None: never."""
    default: dict[str, Any] | None = None
    """The fields of the answer at the deadline. None: the task fails then."""
    assignee: str | None = None
    tags: list[str] = Field(default_factory=list)


class WaitReport(BaseModel):
    """What a run waits for, as far as it has changed since the report before."""

    number: int = Field(ge=1, le=MAX_NUMBER, strict=True)
    """Counts the reports of the attempt. An older one that comes late does not count."""
    waits: Flag
    """Whether nothing in the run can proceed until something comes from outside, or a time limit ends."""
    inbox_seq: Count = 0
    """The last inbox entry that the run has seen."""
    asked: list[AskedQuestion] = Field(default_factory=list)
    """Questions that are open now."""
    closed: list[str] = Field(default_factory=list)
    """Questions that are not open any more."""
    answered: list[str] = Field(default_factory=list)
    """Those of them to which an answer has come."""
    rejected: list[str] = Field(default_factory=list)
    """Questions whose answer the run could not read. They are open again."""


class Question(BaseModel):
    """A question of a task, as clients see it."""

    model_config = ConfigDict(populate_by_name=True)

    question_id: str
    task_id: str
    service_name: str
    session_id: str
    step: str | None = None
    """The step that waits. None: the run continues with any step that takes the answer."""
    prompt: dict[str, Any]
    """The data of the event that asks. Empty: the step waits without such an event."""
    prompt_type: str | None = None
    """The class name of that event."""
    event_type: str
    """The qualified name of the expected class."""
    event_types: list[str]
    """The classes that an answer may have, the expected one first."""
    answer_schema: JsonObject = Field(alias="schema")
    """The JSON schema of the answer's fields; with several classes, `anyOf` their schemas."""
    since: Timestamp
    """When it was asked."""
    deadline: Timestamp | None = None
    """When it stops being open. None: never."""
    default: dict[str, Any] | None = None
    """The fields of the answer at the deadline. None: the run, or the task, fails then."""
    assignee: str | None = None
    tags: list[str] = Field(default_factory=list)
    state: QuestionState = QuestionState.OPEN
    closed_at: Timestamp | None = None
    reason: str | None = None
    """Why it was refused."""


class QuestionPage(BaseModel):
    """Open questions, the oldest first."""

    items: list[Question]
    next_cursor: str | None = None
    """Where the next page begins. None: this is the last one."""


class Answer(BaseModel):
    """The body of `POST /inbox/{question_id}/answer`."""

    model_config = ConfigDict(hide_input_in_errors=True)

    event: dict[str, Any]
    """The fields of the answer."""
    type: str | None = Field(default=None, max_length=500)
    """Its class, one of `Question.event_types`. None: the expected one."""
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=200, pattern=_TEXT_PATTERN)
    """Identifies the answer. The one that was stored may be sent again with the same key."""


class Refusal(BaseModel):
    """The body of `POST /inbox/{question_id}/refuse`."""

    reason: str = Field(min_length=1, max_length=MAX_REFUSAL_CHARACTERS, pattern=_TEXT_PATTERN)


class Assignment(BaseModel):
    """The body of `POST /inbox/{question_id}/assign`."""

    assignee: Assignee | None
    """Who is to answer. None: anybody."""


class Callback(BaseModel):
    """A URL that answers one question once."""

    url: str
    """`POST` the fields of the answer to it, as a JSON object."""
    question_id: str
