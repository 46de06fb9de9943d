"""A question in the terminal: what is asked, and a form for the answer, built from its JSON schema."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import typer

from llama_deploy.cli.arguments import parse_arguments
from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.schemas import ANYTHING, accepted_types, choices_of, summarize, summarize_field
from llama_deploy.concurrency.daemon_threads import in_own_thread
from llama_deploy.printable import printable
from llama_deploy.types.questions import Question, QuestionState

_RESPONSE: Final = "response"
"""The usual field of an event that does not declare any."""
_YES: Final = frozenset({"y", "yes", "true", "1"})
_NO: Final = frozenset({"n", "no", "false", "0"})

ReadLine = Callable[[str], str]
"""Shows a prompt and returns the line that is entered. Raises `EOFError` at the end of the input."""


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer of one class looks like."""

    event_type: str
    schema: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The class without its module."""
        return self.event_type.rpartition(".")[2]

    @property
    def summary(self) -> str:
        """The fields on one line."""
        return summarize(self.schema)


def forms_of(question: Question) -> list[Form]:
    """Return the forms of all classes that an answer may have, the expected one first."""
    types, schema = question.event_types, question.answer_schema
    several = schema.get("anyOf")
    if len(types) > 1 and isinstance(several, list) and len(several) == len(types):
        return [Form(name, each) for name, each in zip(types, several, strict=True)]
    return [Form(name, schema) for name in types]


def form_of(question: Question, event_type: str | None) -> Form:
    """Return the form of a class. None: the expected one.

    Raises:
        CommandError: The answer cannot have this class.
    """
    forms = forms_of(question)
    if event_type is None:
        return forms[0]
    for form in forms:
        if event_type in (form.event_type, form.name):
            return form
    names = ", ".join(form.name for form in forms)
    raise CommandError(f"the question does not take a {event_type}", hint=f"it takes: {names}")


def describe(question: Question) -> str:
    """Return a question as lines of text."""
    return "\n".join(_lines(question))


def _lines(question: Question) -> Iterator[str]:
    step = "" if question.step is None else f", step {question.step}"
    yield f"Question {question.question_id}"
    yield f"  of task {question.task_id}, service {question.service_name}{step}"
    asked_by = "" if question.prompt_type is None else f" by {question.prompt_type}"
    yield f"  asked {question.since:%Y-%m-%d %H:%M:%S} UTC{asked_by}"
    if question.assignee is not None:
        yield f"  for {question.assignee}"
    if question.tags:
        yield f"  tags: {', '.join(question.tags)}"
    if question.deadline is not None:
        then = "" if question.default is None else f", then {json.dumps(question.default)}"
        yield f"  until {question.deadline:%Y-%m-%d %H:%M:%S} UTC{then}"
    for name, value in question.prompt.items():
        if value not in (None, [], {}):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"  {name}: {text}"
    for form in forms_of(question):
        fields = "any fields" if form.summary == ANYTHING else form.summary
        yield f"  answer: {form.name}({fields})"
    if question.state is not QuestionState.OPEN:
        why = "" if question.reason is None else f": {question.reason}"
        yield f"  {question.state.value} at {question.closed_at:%Y-%m-%d %H:%M:%S} UTC{why}"


async def ask_in_terminal(question: Question, event_type: str | None) -> tuple[str, dict[str, Any]]:
    """Ask for an answer in the terminal, field by field.

    Returns:
        Its class, and its fields.

    Raises:
        CommandError: The input has ended.
    """
    return await in_own_thread("answer", lambda: fill_in(question, event_type, read_line))


def read_line(prompt: str) -> str:
    """Show a prompt on stderr, and read a line from stdin.

    Raises:
        EOFError: The input has ended.
    """
    typer.echo(prompt, err=True, nl=False)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def fill_in(question: Question, event_type: str | None, read: ReadLine) -> tuple[str, dict[str, Any]]:
    """Ask for each field until its value fits. See `ask_in_terminal`.

    Args:
        question: The question.
        event_type: The class of the answer. None: ask for it, if there are several.
        read: Reads a line.
    """
    try:
        forms = forms_of(question)
        form = (
            _choose(forms, read) if event_type is None and len(forms) > 1 else form_of(question, event_type)
        )
        return form.event_type, _fields(form, read)
    except EOFError:
        raise CommandError("the input has ended before the answer was complete") from None


def _choose(forms: list[Form], read: ReadLine) -> Form:
    by_name = {form.name: form for form in forms}
    while True:
        name = read(f"class ({' | '.join(by_name)}): ").strip()
        if name in by_name:
            return by_name[name]
        _complain(f"write one of {', '.join(by_name)}")


def _fields(form: Form, read: ReadLine) -> dict[str, Any]:
    properties = form.schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        return _free_fields(read)
    required = form.schema.get("required", [])
    answer: dict[str, Any] = {}
    for name in properties:
        given, value = _field(name, form.schema, read, is_required=name in required)
        if given:
            answer[name] = value
    return answer


def _free_fields(read: ReadLine) -> dict[str, Any]:
    """Ask for the usual field, and for any others: the class declares none."""
    answer: dict[str, Any] = {_RESPONSE: read(f"{_RESPONSE} (string): ")}
    while text := read("another field as KEY=VALUE, or nothing: "):
        try:
            answer |= parse_arguments([text], what="field")
        except CommandError as exc:
            _complain(str(exc))
    return answer


def _field(name: str, schema: Mapping[str, Any], read: ReadLine, *, is_required: bool) -> tuple[bool, Any]:
    """Ask for one field. Return whether it was given, and its value."""
    field = schema["properties"][name]
    described = field.get("description")
    if isinstance(described, str):
        typer.echo(f"  {printable(described)}", err=True)
    while True:
        text = read(f"{printable(name)} ({printable(summarize_field(field, schema))}): ")
        if not text.strip() and not is_required:
            return False, None
        try:
            return True, value_of(text, name, schema)
        except ValueError as exc:
            _complain(str(exc))


def value_of(text: str, name: str, schema: Mapping[str, Any]) -> Any:
    """Return a line as the value of a field.

    Raises:
        ValueError: It cannot be one; the text says what is expected.
    """
    choices = choices_of(schema["properties"][name], schema)
    if choices is not None:
        return _choice(text, choices)
    types = accepted_types(name, schema) or frozenset()
    simple = _simple(text.strip(), types)
    if simple is not _NOT_ONE:
        return simple
    if "string" in types:
        return _text(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _NOT_ONE
    if value is not _NOT_ONE and (not types or _kind(value) in types):
        return value
    raise ValueError(f"write {_expected(types)}")


_NOT_ONE: Final = object()


def _simple(text: str, types: frozenset[str]) -> object:
    """Return a text as null, a boolean or a number. `_NOT_ONE`: it is none of these types."""
    if "null" in types and text == "null":
        return None
    if "boolean" in types and text.lower() in _YES | _NO:
        return text.lower() in _YES
    if "integer" in types and _is_number(int, text):
        return int(text)
    if "number" in types and _is_number(float, text):
        return float(text)
    return _NOT_ONE


def _choice(text: str, choices: list[Any]) -> Any:
    by_text = {each if isinstance(each, str) else json.dumps(each): each for each in choices}
    if text.strip() not in by_text:
        raise ValueError(f"write one of {', '.join(by_text)}")
    return by_text[text.strip()]


def _text(text: str) -> str:
    """Return a line as text; in quotation marks, as JSON, it may be empty or have several lines."""
    if text.startswith('"'):
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return value if isinstance(value, str) else text
    if not text:
        raise ValueError('write a text; "" is an empty one')
    return text


def _is_number(kind: Callable[[str], float], text: str) -> bool:
    try:
        return abs(kind(text)) < float("inf")
    except (ValueError, OverflowError):
        return False


def _kind(value: object) -> str:
    kinds: dict[type, str] = {list: "array", dict: "object", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "")


_WORDS: Final = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "yes or no",
    "array": "a list in JSON, such as [1, 2]",
    "object": 'an object in JSON, such as {"a": 1}',
    "null": "null",
}


def _expected(types: frozenset[str]) -> str:
    return " or ".join(_WORDS.get(each, each) for each in sorted(types)) or "a value in JSON"


def _complain(text: str) -> None:
    typer.echo(f"  {printable(text)}", err=True)
