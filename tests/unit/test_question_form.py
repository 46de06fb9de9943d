"""The form in the terminal for the answer to a question."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from workflows.events import Event, HumanResponseEvent

from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.inbox.question_form import describe, fill_in, form_of
from llama_deploy.services.values.answer_forms import AnswerForms
from llama_deploy.types.questions import Question, QuestionState


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Place(BaseModel):
    city: str


class Full(HumanResponseEvent):
    name: str
    count: int
    share: float | None = None
    sure: bool = Field(default=False, description="whether you are sure")
    colour: Colour = Colour.RED
    size: Literal[1, 2] = 1
    words: list[str] = Field(default_factory=list)
    place: Place | None = None


class Short(HumanResponseEvent):
    text: str


def question(*classes: type[Event], **changes: Any) -> Question:
    form = AnswerForms(classes).of_classes(classes)
    fields: dict[str, Any] = {
        "question_id": "ask-1",
        "task_id": "t1",
        "service_name": "service",
        "session_id": "s1",
        "prompt": {"text": "ready?"},
        "event_type": form.event_types[0],
        "event_types": form.event_types,
        "answer_schema": form.schema,
        "since": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    }
    return Question(**{**fields, **changes})


def typing(*lines: str) -> tuple[Callable[[str], str], list[str]]:
    """Return what reads these lines, and the prompts that it is given."""
    left, prompts = list(lines), list[str]()

    def read(prompt: str) -> str:
        prompts.append(prompt)
        if not left:
            raise EOFError
        return left.pop(0)

    return read, prompts


def test_each_field_is_asked_with_its_type() -> None:
    read, prompts = typing("Zoë", "3", "0.5", "yes", "blue", "2", '["a", "b"]', '{"city": "Oslo"}')
    assert fill_in(question(Full), None, read)[1] == {
        "name": "Zoë",
        "count": 3,
        "share": 0.5,
        "sure": True,
        "colour": "blue",
        "size": 2,
        "words": ["a", "b"],
        "place": {"city": "Oslo"},
    }
    assert prompts[:3] == ["name (string): ", "count (integer): ", "share (number | null = null): "]
    assert prompts[4:6] == ["colour ('red' | 'blue' = \"red\"): ", "size (1 | 2 = 1): "]


def test_fields_that_are_not_required_may_be_left_out() -> None:
    read, _ = typing("a", "1", "", "", "", "", "", "")
    assert fill_in(question(Full), None, read)[1] == {"name": "a", "count": 1}


def test_a_wrong_value_is_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    read, prompts = typing(
        "", "a", "many", "1", "x", "1e999", "", "perhaps", "n", "green", "red", "", "[", "[]", ""
    )
    fields = fill_in(question(Full), None, read)[1]
    assert fields == {"name": "a", "count": 1, "sure": False, "colour": "red", "words": []}
    assert len(prompts) == 15
    told = capsys.readouterr().err
    for text in (
        'write a text; "" is an empty one',
        "write an integer",
        "write null or a number",
        "write yes or no",
        "write one of red, blue",
        "write a list in JSON",
    ):
        assert text in told
    assert "whether you are sure" in told


def test_text_in_quotation_marks_may_be_empty_or_have_several_lines() -> None:
    for line, text in (('""', ""), ('"a\\nb"', "a\nb"), ('"open', '"open'), ("12", "12"), ("null", "null")):
        assert fill_in(question(Short), None, typing(line)[0])[1] == {"text": text}


def test_one_of_several_classes_is_chosen() -> None:
    read, prompts = typing("Long", "Short", "x")
    assert fill_in(question(Full, Short), None, read)[1] == {"text": "x"}
    assert prompts[0] == "class (Full | Short): "
    assert fill_in(question(Full, Short), "Short", typing("x")[0])[1] == {"text": "x"}
    with pytest.raises(CommandError, match="does not take a Long"):
        form_of(question(Full, Short), "Long")


def test_a_class_without_fields_is_asked_for_its_usual_one() -> None:
    read, _ = typing("yes", "grade=3", "wrong", "")
    asked = question(HumanResponseEvent)
    assert fill_in(asked, None, read)[1] == {"response": "yes", "grade": 3}


def test_the_end_of_the_input_is_an_error() -> None:
    with pytest.raises(CommandError, match="the input has ended"):
        fill_in(question(Full), None, typing("a")[0])


def test_a_question_is_described() -> None:
    at = datetime(2026, 1, 3, tzinfo=UTC)
    asked = question(
        Short,
        step="ask",
        prompt_type="Ask",
        assignee="ann",
        tags=["a", "b"],
        deadline=at,
        default={"text": "no"},
        state=QuestionState.REFUSED,
        closed_at=at,
        reason="not mine",
    )
    assert describe(asked).splitlines() == [
        "Question ask-1",
        "  of task t1, service service, step ask",
        "  asked 2026-01-02 03:04:05 UTC by Ask",
        "  for ann",
        "  tags: a, b",
        '  until 2026-01-03 00:00:00 UTC, then {"text": "no"}',
        "  text: ready?",
        "  answer: Short(text: string)",
        "  refused at 2026-01-03 00:00:00 UTC: not mine",
    ]
