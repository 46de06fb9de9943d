"""The text of a result does not repeat the strings of its value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from workflows.events import StopEvent

from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.types.instance_protocol import AttemptOutcome
from llama_deploy.types.repeated_text import shortened, whole

LENGTH = 400_000


class Report(BaseModel):
    """Shown with its field."""

    text: str
    pages: list[str] = []


class Plain(Report):
    """Shown as its text."""

    def __str__(self) -> str:
        return self.text


def outcome_of(result: Any) -> AttemptOutcome:
    outcome = RunOutcome.succeeded(StopEvent(result=result))
    return AttemptOutcome(
        task_id="t",
        attempt=1,
        token="k",
        first=0,
        events=[],
        status=outcome.status,
        result=outcome.result,
        text_parts=outcome.text_parts,
        value=outcome.value,
        terminal_event=outcome.terminal_event,
        event_value=outcome.event_value,
    )


RESULTS = {
    "text": "x" * LENGTH,
    "dictionary": {"text": "x" * LENGTH},
    "model": Report(text="x" * LENGTH),
    "quotes": Report(text="'\"\n" * (LENGTH // 3)),
    "own text": Plain(text="x\n" * (LENGTH // 2)),
    "pages": Report(text="", pages=[f"{n:0100}" for n in range(LENGTH // 100)]),
    "models": [Report(text=f"{n:01000}") for n in range(LENGTH // 1000)],
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_large_result_travels_once(name: str) -> None:
    result = RESULTS[name]
    outcome = outcome_of(result)
    message = QueueMessage(action=ActionTypes.COMPLETED_TASK, data=outcome.model_dump(mode="json"))
    assert len(message.encode()) < 1.2 * len(json.dumps(outcome.value)) + 1000
    received = AttemptOutcome.model_validate(QueueMessage.decode(message.encode()).data)
    assert received.text == str(result)
    assert received.task_result.result == str(result)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("short", "short"),
        ("y" * LENGTH, {"text": "x" * LENGTH}),
        ("y" * LENGTH, [f"{n:0100}" for n in range(LENGTH)]),
        ("y" * LENGTH, None),
    ],
)
def test_a_text_that_holds_little_of_the_value_stays(text: str, value: Any) -> None:
    assert shortened(text, value) is None


def test_parts_that_do_not_belong_to_the_value_are_refused() -> None:
    with pytest.raises(ValueError, match="names others"):
        whole(["a", 2], "x" * 100)
    outcome = outcome_of(RESULTS["model"])
    with pytest.raises(ValidationError, match="names others"):
        AttemptOutcome.model_validate({**outcome.model_dump(), "value": "other"})
