"""The steps of a task that have ended, as text: a JSON list with a short list for each step.

A task of one step writes this once, so it has no names of fields. Newer releases may append values to the
list of a step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Final, NamedTuple

from pydantic import BaseModel, Field

from llama_deploy.types.epoch import EPOCH
from llama_deploy.types.exact_values import MAX_NUMBER
from llama_deploy.types.task_lists import EndedStep

MAX_STEP_NAME: Final = 100
"""How many characters of the name of a step, and of the class of its exception, are kept."""
MAX_STEPS_OF_ROW: Final = 200
"""How many steps are reported together; of more, the last ones."""
_LONGEST_MS: Final = 2**53 // 1000
_MAX_STEP_ID: Final = 20


def step_id(attempt: int, number: int) -> str:
    """Return the id of the run of a step: the number-th one, from 1, that has ended in an attempt."""
    return f"{attempt}.{number}"


def read_step_id(text: str) -> tuple[int, int] | None:
    """Return the attempt and the number of a `step_id`. None: it is not one."""
    attempt, dot, number = text.partition(".")
    if not dot or any(not (each.isascii() and each.isdecimal()) for each in (attempt, number)):
        return None
    return (int(attempt), int(number)) if len(text) <= _MAX_STEP_ID and int(number) > 0 else None


class StepEnd(NamedTuple):
    """A step that has ended."""

    step: str
    began_ms: int
    """Milliseconds since 1970-01-01T00:00Z, by the clock of the instance."""
    took_ms: int
    events: int
    """How many events it has streamed."""
    error: str | None = None
    """The class of the exception that it has raised. None: it has returned."""
    point: str | None = None
    """Where the journal of the run was when it began, see `RunPoint`. None: nothing of it was written."""


class EndedSteps(BaseModel):
    """Steps of an attempt that have ended since the report before."""

    first: int = Field(ge=0, le=2**31, strict=True)
    """How many steps of the attempt had ended before. With the attempt, it identifies these."""
    steps: str
    """As `encode_steps` returns it."""


def encode_steps(steps: Iterable[StepEnd]) -> str:
    """Return steps as text."""
    return json.dumps(list(map(_without_rest, steps)), separators=(",", ":"))


def _without_rest(step: StepEnd) -> tuple[object, ...]:
    if step.point is not None:
        return step
    return step[:4] if step.error is None else step[:5]


def decode_steps(text: str, *, attempt: int, first: int = 0) -> Iterator[EndedStep]:
    """Yield the steps in a text of an attempt. What does not have the form is left out.

    Args:
        text: As `encode_steps` returns it.
        attempt: The attempt.
        first: See `EndedSteps`.
    """
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        return
    for number, each in enumerate(stored if isinstance(stored, list) else (), start=first + 1):
        match each:
            case [str(step), int(began_ms), int(took_ms), int(events), *rest]:
                if not _are_counts(began_ms, took_ms, events):
                    continue
                began_at = EPOCH + timedelta(milliseconds=began_ms)
                yield EndedStep(
                    step=step,
                    attempt=attempt,
                    began_at=began_at,
                    ended_at=began_at + timedelta(milliseconds=took_ms),
                    events=events,
                    error=rest[0] if rest and isinstance(rest[0], str) else None,
                    step_id=step_id(attempt, number),
                    point=rest[1] if len(rest) > 1 and isinstance(rest[1], str) else None,
                )
            case _:
                continue


def _are_counts(began_ms: int, took_ms: int, events: int) -> bool:
    """Tell whether these are numbers of the form, of which `datetime` can hold the times."""
    return (
        bool not in map(type, (began_ms, took_ms, events))
        and 0 <= began_ms < _LONGEST_MS
        and 0 <= took_ms < _LONGEST_MS
        and 0 <= events <= MAX_NUMBER
    )
