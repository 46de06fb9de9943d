"""What the event that asks a question says about it: who answers, until when, and what counts after that."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from workflows.events import Event

from llama_deploy.errors import InvalidRequestError, SerializationError
from llama_deploy.services.values.payloads import build_event, streamed_event
from llama_deploy.types.questions import MAX_ASSIGNEE_CHARACTERS, MAX_TAG_CHARACTERS, MAX_TAGS

logger = logging.getLogger(__name__)

_MAX_SECONDS: Final = 3650 * 86400.0


@dataclass(frozen=True, slots=True)
class QuestionOptions:
    """The fields of the asking event that have a meaning, as far as they have the type for it.

    A workflow may have its own use for the same names, so a field of another type means nothing.
    """

    prompt: dict[str, Any] = field(default_factory=dict)
    prompt_type: str | None = None
    assignee: str | None = None
    """`assignee`: a text."""
    tags: list[str] = field(default_factory=list)
    """`tags`: a list of texts."""
    deadline: datetime | None = None
    """`deadline`: a datetime, a timedelta, or a number of seconds from now."""
    default: dict[str, Any] | None = None
    """`default`: the fields of the answer, or an event of its class."""

    @classmethod
    def of(cls, event: Event | None, *, awaited: type[Event], now: float) -> QuestionOptions:
        """Return the options in an asking event. None: there is no such event.

        Args:
            event: The event.
            awaited: The class of the answer.
            now: The time of the run in seconds since 1970.
        """
        if event is None:
            return cls()
        try:
            data = streamed_event(event).payload.data
        except SerializationError:
            data = {}  # streaming it fails the run
        assignee = getattr(event, "assignee", None)
        is_name = isinstance(assignee, str) and _is_line(assignee, MAX_ASSIGNEE_CHARACTERS)
        return cls(
            prompt=data,
            prompt_type=type(event).__name__,
            assignee=assignee if is_name else None,
            tags=_tags(getattr(event, "tags", None)),
            deadline=_deadline(getattr(event, "deadline", None), now),
            default=_default(getattr(event, "default", None), awaited),
        )


def moment(seconds: float) -> datetime | None:
    """Return the point in time so many seconds after 1970. None: it is too far away to be one."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _tags(value: object) -> list[str]:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | dict):
        return []
    texts = [each for each in value if isinstance(each, str) and _is_line(each, MAX_TAG_CHARACTERS)]
    return list(dict.fromkeys(texts))[:MAX_TAGS]


def _is_line(text: str, limit: int) -> bool:
    return 0 < len(text) <= limit and text.isprintable()


def _deadline(value: object, now: float) -> datetime | None:
    match value:
        case datetime():
            return value.astimezone(UTC)  # a naive one is in local time, as everywhere in Python
        case timedelta():
            return moment(now + value.total_seconds())
        case bool():
            return None
        case int() | float() if math.isfinite(value) and abs(value) <= _MAX_SECONDS:
            return moment(now + value)
        case _:
            return None


def _default(value: object, awaited: type[Event]) -> dict[str, Any] | None:
    if isinstance(value, awaited):
        value = streamed_event(value).payload.data
    if not isinstance(value, dict):
        return None
    try:
        return streamed_event(build_event(awaited, value)).payload.data
    except (InvalidRequestError, SerializationError) as exc:
        logger.warning(
            "the default of a question is not a valid %s, so it does not count: %s",
            awaited.__name__,
            exc,
            extra={"action": "default_rejected"},
        )
        return None
