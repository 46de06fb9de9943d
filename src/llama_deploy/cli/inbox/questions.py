"""What the commands of `llamactl inbox` do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import typer

from llama_deploy.cli.arguments import parse_arguments
from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.inbox.question_form import Form, ask_in_terminal, describe, form_of
from llama_deploy.cli.output import note
from llama_deploy.cli.schemas import ANYTHING
from llama_deploy.cli.text_tables import age, aligned, terminal_width
from llama_deploy.client import Client
from llama_deploy.printable import printable
from llama_deploy.types.questions import Question, QuestionState


@dataclass(frozen=True, slots=True)
class Listing:
    """Which questions `llamactl inbox list` shows."""

    service: str | None
    assignee: str | None
    tag: str | None
    cursor: str | None
    limit: int


async def print_questions(client: Client, listing: Listing, *, as_json: bool) -> None:
    """Print a page of open questions.

    Raises:
        InvalidCursorError: The cursor belongs to a list with other filters.
    """
    page = await client.inbox.page(**asdict(listing))
    if as_json:
        typer.echo(page.model_dump_json(by_alias=True))
        return
    if not page.items:
        note("There are no such questions that are open.")
        return
    for line in table_of(page.items, now=datetime.now(UTC), width=terminal_width()):
        typer.echo(line)
    if page.next_cursor is not None:
        note(f"There are more questions: repeat the command with --cursor {page.next_cursor}")


async def print_question(client: Client, question_id: str, *, as_json: bool) -> None:
    """Print a question.

    Raises:
        QuestionNotFoundError: It does not exist.
    """
    question = await client.inbox.get(question_id)
    _print(question, describe(question), as_json=as_json)


async def answer_question(
    client: Client, question_id: str, texts: Sequence[str], event_type: str | None, *, as_json: bool
) -> None:
    """Answer a question with fields from the command line, or ask for them in the terminal.

    Raises:
        CommandError: A field is malformed, or there are none and stdin is not a terminal.
        QuestionNotFoundError: The question does not exist.
        QuestionClosedError: It is not open.
        AnswerNotAcceptedError: The answer does not fit.
    """
    question = await client.inbox.get(question_id)
    fields: dict[str, Any]
    if texts:
        schema = form_of(question, event_type).schema
        fields = parse_arguments(texts, schema, what="field")
    elif question.state is not QuestionState.OPEN:
        fields = {}  # the control plane says why it cannot be answered
    elif not sys.stdin.isatty():
        raise CommandError(
            "the answer has no fields, and stdin is not a terminal in which to ask for them",
            hint=f"write KEY=VALUE or @FILE. {_fields_of(form_of(question, event_type))}",
        )
    else:
        typer.echo(printable_block(describe(question)), err=True)
        event_type, fields = await ask_in_terminal(question, event_type)
    answered = await client.inbox.answer(question_id, fields, event_type=event_type)
    told = f"Answered question {question_id} of task {answered.task_id}."
    _print(answered, told, as_json=as_json)


async def refuse_question(client: Client, question_id: str, reason: str, *, as_json: bool) -> None:
    """Refuse to answer a question.

    Raises:
        QuestionNotFoundError: It does not exist.
        QuestionClosedError: It is not open.
    """
    refused = await client.inbox.refuse(question_id, reason)
    told = f"Refused question {question_id}; task {refused.task_id} fails."
    _print(refused, told, as_json=as_json)


async def assign_question(client: Client, question_id: str, assignee: str | None, *, as_json: bool) -> None:
    """Assign a question.

    Raises:
        QuestionNotFoundError: It does not exist.
        QuestionClosedError: It is not open.
    """
    assigned = await client.inbox.assign(question_id, assignee)
    told = f"Question {question_id} is assigned to {assigned.assignee or 'no one'}."
    _print(assigned, told, as_json=as_json)


async def print_callback(client: Client, question_id: str, *, as_json: bool) -> None:
    """Print a URL that answers a question once.

    Raises:
        QuestionNotFoundError: It does not exist.
        QuestionClosedError: It is not open.
    """
    callback = await client.inbox.callback(question_id)
    typer.echo(callback.model_dump_json() if as_json else callback.url)


def _fields_of(form: Form) -> str:
    if form.summary == ANYTHING:
        return "The answer takes any fields, usually response=TEXT"
    return f"The answer takes: {form.summary}"


def printable_block(text: str) -> str:
    """Return lines of text that a terminal can show."""
    return "\n".join(map(printable, text.splitlines()))


def _print(question: Question, text: str, *, as_json: bool) -> None:
    typer.echo(question.model_dump_json(by_alias=True) if as_json else printable_block(text))


def table_of(questions: Sequence[Question], *, now: datetime, width: int | None) -> Iterator[str]:
    """Yield the rows of a table of questions: id, service, since when, for whom, and what is asked.

    Args:
        questions: The questions, at least one.
        now: The present time.
        width: How many characters a row may have. None: as many as it needs.
    """
    rows = [
        (
            printable(question.question_id),
            printable(question.service_name),
            age(question.since, now=now),
            printable(_remark(question)),
        )
        for question in questions
    ]
    yield from aligned([("question", "service", "since", ""), *rows], width=width, right=2)


def _remark(question: Question) -> str:
    who = f"for {question.assignee}" if question.assignee else ""
    tags = f"[{', '.join(question.tags)}]" if question.tags else ""
    return "  ".join(filter(None, (who, tags, _prompt(question))))


def _prompt(question: Question) -> str:
    """Return what is asked: the text, if the prompt has only one."""
    match [value for value in question.prompt.values() if value not in (None, [], {})]:
        case [str() as text]:
            return text
        case _:
            return json.dumps(question.prompt, ensure_ascii=False)
