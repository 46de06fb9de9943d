"""What reports, answers and deadlines make of questions. No I/O, no clock."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from llama_deploy.control_plane.decisions.event_checks import classes_of
from llama_deploy.control_plane.decisions.transitions import (
    Transition,
    failed_result,
    failure_of,
    finish,
)
from llama_deploy.control_plane.decisions.value_checks import faults_of
from llama_deploy.errors import (
    AnswerNotAcceptedError,
    LlamaDeployError,
    QuestionClosedError,
    QuestionExpiredError,
    QuestionRefusedError,
    SerializationError,
)
from llama_deploy.state_stores.question_records import QuestionHead, QuestionRecord
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import EventDefinition, TaskStatus
from llama_deploy.types.instance_protocol import AttemptEvents
from llama_deploy.types.json_values import encode_json
from llama_deploy.types.keys import public_id
from llama_deploy.types.questions import Answer, AskedQuestion, QuestionState

OF_STREAM: Final = "ask-"
"""How the ids of questions begin whose answer any step takes."""

_ENDS: Final = {
    QuestionState.ANSWERED: "was answered",
    QuestionState.REFUSED: "was refused",
    QuestionState.EXPIRED: "has expired: its deadline has passed",
    QuestionState.WITHDRAWN: "is not open any more: the run does not wait for the answer now",
    QuestionState.ENDED: "has ended with its task",
}


def with_waits(transition: Transition, sent: AttemptEvents, *, at: datetime) -> Transition:
    """Return a transition that also takes what a report says of the run's waiting.

    A report that comes again or late changes nothing.
    """
    report, task = sent.waits, transition.task
    if report is None or task.status.is_terminal:
        return transition
    if task.attempt != sent.attempt:
        # The run was parked, and woken at once. The reports of the next attempt are counted anew.
        return replace(transition, task=task._replace(wait_reports=0), waits=report)
    if report.number <= (task.wait_reports or 0):
        return transition
    is_waiting = task.status is TaskStatus.WAITING or (report.waits and task.inbox_length <= report.inbox_seq)
    since = (task.waiting_since or at) if is_waiting else None
    if (task.waiting_since is None) is not (since is None):
        task = task._replace(status_changed_at=at)  # as clients see it
    task = task._replace(wait_reports=report.number, waiting_since=since)
    return replace(transition, task=task, waits=report)


def question_of(task: TaskRecord, asked: AskedQuestion, *, at: datetime) -> QuestionRecord:
    """Return a question of a task as it is stored."""
    return QuestionRecord(
        question_id=asked.question_id,
        task_id=task.task_id,
        session_id=task.session_id,
        service_name=task.target,
        since=at,
        event_types=json.dumps(asked.event_types),
        prompt=json.dumps(asked.prompt),
        answer_schema=json.dumps(asked.answer_schema),
        step=asked.step,
        checks=None if not asked.check else json.dumps(asked.check),
        requirements=None if asked.requirements is None else json.dumps(asked.requirements),
        prompt_type=asked.prompt_type,
        deadline=asked.deadline,
        times_out_at=asked.times_out_at,
        default_answer=None if asked.default is None else json.dumps(asked.default),
        assignee=asked.assignee,
        tags=json.dumps(asked.tags) if asked.tags else "[]",
        tenant=task.tenant,
        subject=task.subject,
    )


def closed(question: QuestionHead, state: QuestionState, *, at: datetime, **changes: Any) -> QuestionHead:
    """Return a question that is not open any more."""
    return question._replace(state=state, closed_at=at, **changes)


def is_repeated(question: QuestionHead, answer: Answer) -> bool:
    """Whether this very answer is stored: a client repeats it because it has not learnt that."""
    return answer.idempotency_key is not None and question.answer_key == answer.idempotency_key


def check_open(question: QuestionHead, task: TaskRecord) -> None:
    """Raise `QuestionClosedError` unless a question can be answered."""
    state = question.state
    if state is QuestionState.OPEN:
        if not task.status.is_terminal:
            return
        state = QuestionState.ENDED
    how = _ENDS[state]
    if state is QuestionState.ENDED and task.status.is_terminal:
        how += f", which has {task.status.value}" if task.status is TaskStatus.FAILED else ""
    when = "" if question.closed_at is None else f" at {question.closed_at:%Y-%m-%d %H:%M:%S} UTC"
    why = "" if question.reason is None else f": {question.reason}"
    raise QuestionClosedError(
        f"question {question.question_id} of task {public_id(question.task_id)} {how}{when}{why}",
        question_id=question.question_id,
        state=state.value,
    )


def answer_event(question: QuestionHead, answer: Answer) -> EventDefinition:
    """Return the event that an answer is.

    Raises:
        AnswerNotAcceptedError: It does not fit the expected class.
    """
    name, fields = _class_of(question, answer.type), answer.event
    required: Mapping[str, Any] = json.loads(question.requirements or "{}")
    fields = {**required, **fields}
    other = [f"{key}: must be {value!r}" for key, value in required.items() if fields[key] != value]
    checks: Mapping[str, Any] = json.loads(question.checks or "{}")
    faults = [*other, *faults_of(fields, checks.get(name))]
    if faults:
        raise AnswerNotAcceptedError(
            f"question {question.question_id}: the answer is not a valid {name}: {'; '.join(faults)}",
            question_id=question.question_id,
        )
    try:
        text = encode_json({"qualified_name": name, "value": fields})
    except SerializationError as exc:
        raise AnswerNotAcceptedError(
            f"question {question.question_id}: {exc}", question_id=question.question_id
        ) from exc
    return EventDefinition(event_obj_str=text, question_id=question.question_id)


def answered_by(
    open_questions: Iterable[QuestionHead], event: EventDefinition
) -> tuple[list[QuestionHead], EventDefinition]:
    """Return the questions that an event answers which names none, and the event as it is stored.

    As in the run: each step that waits for such an event gets it. If none does, it answers the first question
    whose answer any step takes.
    """
    name, fields = event.content()
    fitting = [
        question
        for question in open_questions
        if classes_of(name, json.loads(question.event_types)) and _meets(question, fields)
    ]
    of_waits = [each for each in fitting if not each.question_id.startswith(OF_STREAM)]
    if of_waits or not fitting:
        return of_waits, event
    first = fitting[0]
    return [first], event.model_copy(update={"question_id": first.question_id})


def refused(task: TaskRecord, question: QuestionHead, reason: str, *, at: datetime) -> Transition:
    """Somebody refuses to answer: the task fails."""
    text = f"question {question.question_id} was refused: {reason}"
    return _failed(task, QuestionRefusedError, text, at=at)


def expired(task: TaskRecord, question: QuestionHead, *, at: datetime) -> Transition:
    """A question without a default was not answered until its deadline: the task fails."""
    text = f"question {question.question_id} was not answered until its deadline"
    if question.deadline is not None:
        text += f", {question.deadline:%Y-%m-%d %H:%M:%S} UTC"
    return _failed(task, QuestionExpiredError, text, at=at)


def _failed(task: TaskRecord, error: type[LlamaDeployError], text: str, *, at: datetime) -> Transition:
    ended = finish(task, failed_result(task, failure_of(error, text)), at=at)
    # The instance has a run in memory that has nothing to do any more.
    return replace(ended, notify_cancel=task.status is TaskStatus.RUNNING)


def _class_of(question: QuestionHead, name: str | None) -> str:
    known: list[str] = json.loads(question.event_types)
    if name is None:
        return known[0]
    match classes_of(name, known):
        case [only]:
            return only
        case _:
            raise AnswerNotAcceptedError(
                f"question {question.question_id} does not take a {name}; it takes: {', '.join(known)}",
                question_id=question.question_id,
            )


def _meets(question: QuestionHead, fields: Mapping[str, Any]) -> bool:
    if question.requirements is None:
        return False  # the instance will say so
    return all(fields.get(key) == value for key, value in json.loads(question.requirements).items())
