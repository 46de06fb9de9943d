"""The outcome of a run, in the form in which it is reported."""

from __future__ import annotations

import logging
import os
import traceback
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel
from workflows import Context
from workflows.errors import WorkflowTimeoutError
from workflows.events import StopEvent, WorkflowTimedOutEvent

from llama_deploy import errors
from llama_deploy.codec import DescribedError, qualified_name, text_of, valid_text
from llama_deploy.codec.plain_json import measured, to_json_value
from llama_deploy.errors import SerializationError, TaskCancelledError
from llama_deploy.portability.live_objects import check_portable
from llama_deploy.renamed import advice_on
from llama_deploy.services.run.steps.step_guard import StepExitError
from llama_deploy.services.values.payloads import value_type_of
from llama_deploy.types import TaskFailure, TaskStatus
from llama_deploy.types.instance_protocol import EventPayload
from llama_deploy.types.repeated_text import Part, shortened
from llama_deploy.workflow_library import library_folders

logger = logging.getLogger(__name__)

MAX_TEXT: Final = 50_000
"""How many characters of an exception's text, and of its traceback, are reported."""
_TRACEBACK_LINES: Final = 20
_TEXT_LINES: Final = 5
"""How many lines of a long text the traceback repeats."""
_LINE_CHARACTERS: Final = 2_000
_PACKAGE: Final = os.path.dirname(errors.__file__)  # noqa: PTH120 - as in frames
_FRAMEWORK: Final = (*library_folders(), _PACKAGE + os.sep)
"""Folders whose frames tell nobody what is wrong with a step or a message."""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The outcome of a run."""

    status: TaskStatus
    result: str | None = None
    """The result as text. None: it follows from the other fields, see `AttemptOutcome.text`."""
    text_parts: list[Part] | None = None
    """The same, where most of it is in the value; see `AttemptOutcome`."""
    value: Any = None
    value_type: str | None = None
    terminal_event: EventPayload | None = None
    event_value: Literal["result", "data"] | None = None
    """Where the terminal event repeats the value; see `AttemptOutcome`."""
    error: TaskFailure | None = None
    history: list[Any] | None = None
    """What a service without a workflow has published beside its result; see `TaskResult`."""
    data: dict[str, Any] | None = None
    """The same."""
    cause: BaseException | None = None
    """The exception that the workflow raised."""
    ctx: Context | None = None
    """The context of a run that succeeded, which holds the workflow's state. None: it has none."""
    size: int = 256
    """The approximate length of the outcome as JSON, in bytes."""

    @classmethod
    def failed(cls, cause: BaseException) -> RunOutcome:
        """The run failed with an exception."""
        return cls(TaskStatus.FAILED, error=describe_failure(cause), cause=cause)

    @classmethod
    def timed_out(
        cls, event: WorkflowTimedOutEvent, cause: BaseException | None, *, dead_end: str | None
    ) -> RunOutcome:
        """The run exceeded the workflow's own time limit.

        Args:
            event: The event with which its stream has ended.
            cause: The exception that the library has raised.
            dead_end: Why the run could not continue, if it could not.
        """
        active = ", ".join(event.active_steps) or "none"
        message = f"timed out after {event.timeout} seconds; active steps: {active}"
        text = (message if cause is None else str(cause)) + (f"; {dead_end}" if dead_end else "")
        error = TaskFailure(type=qualified_name(WorkflowTimeoutError), message=text)
        return cls(
            TaskStatus.TIMED_OUT, error=error, cause=WorkflowTimeoutError(message) if cause is None else cause
        )

    @classmethod
    def cancelled(cls) -> RunOutcome:
        """The run was cancelled."""
        error = TaskFailure(type=qualified_name(TaskCancelledError), message="the task was cancelled")
        return cls(TaskStatus.CANCELLED, error=error)

    @classmethod
    def succeeded(cls, event: StopEvent, ctx: Context | None = None, *, strict: bool = False) -> RunOutcome:
        """The run ended with the workflow's stop event.

        A result that does not have a JSON form, such as an object, becomes its text unless this is `strict`.

        Raises:
            SerializationError: The result, if this is `strict`, or an undeclared field beside it, cannot be
                written as JSON. Or the result holds keys and secrets, which its text may show.
        """
        name = type(event).__name__
        plain = type(event) is StopEvent
        result: object = event.result if plain else event
        text = text_of(result) if plain else None
        repeated: Literal["result", "data"] = "result" if plain else "data"
        others = {key: item for key, item in event.items() if key != "result"} if plain else {}
        try:
            value, size = measured(result, path="result")
        except SerializationError as exc:
            if strict:
                raise
            check_portable(result, path="result", as_text=True)
            text, repeated = text or text_of(result), "result"
            value, size = text, len(text)
            logger.info("clients get the text of a result: %s", exc, extra={"action": "text_of_result"})
        # The control plane derives the text from the value where it can.
        sent = None if text in (None, str(value)) or _may_show_keys(result) else text
        parts = None if sent is None else shortened(sent, value)
        return cls(
            TaskStatus.SUCCEEDED,
            result=sent if parts is None else None,
            text_parts=parts,
            value=value,
            value_type=value_type_of(result),
            terminal_event=EventPayload(type=name, data=to_json_value(others, path=name) if others else {}),
            event_value=repeated,
            ctx=ctx,
            size=size + 256,
        )


def _may_show_keys(result: object) -> bool:
    """Whether the text of a result shows an object with keys, in a field that its JSON does not have."""
    if type(result).__str__ not in (object.__str__, BaseModel.__str__):
        return False  # its class chooses what is shown
    try:
        check_portable(result, path="result", as_text=True)
    except SerializationError:
        return True
    return False


def describe_failure(exc: BaseException) -> TaskFailure:
    """Return what clients see of an exception: its class, its text and the end of its traceback.

    The frames of the workflow library and of this package are omitted, also those of exceptions that led to
    it: they are the same in every traceback.
    A long text is cut. Characters that UTF-8 cannot represent are replaced by their escape sequences.
    """
    shown = exc.raised if isinstance(exc, StepExitError) else exc
    lines = _traceback_of(exc)
    return TaskFailure(
        type=qualified_name(type(shown)),
        message=_cut(text_of(exc), MAX_TEXT) + _advice(exc),
        traceback=None if lines is None else valid_text("\n".join(lines)),
    )


def loggable(exc: BaseException, described: TaskFailure) -> BaseException:
    """Return an exception whose traceback any log can hold: `exc`, or what was described of it.

    Its text, or that of an exception that led to it, may be long, fail, or not be valid UTF-8.
    """
    chain: list[BaseException] = []
    waiting: list[BaseException | None] = [exc]
    while waiting:
        each = waiting.pop()
        if each is not None and not any(each is known for known in chain):
            chain.append(each)
            waiting += [each.__cause__, each.__context__]
    if all(map(_is_loggable, chain)):
        return exc
    return DescribedError(described.type, described.message).with_traceback(exc.__traceback__)


def _is_loggable(exc: BaseException) -> bool:
    try:
        text = str(exc)
    except BaseException:  # noqa: BLE001 - a user's `__str__` may raise anything
        return False
    return len(text) <= MAX_TEXT and text_of(exc) == text


def _advice(exc: BaseException) -> str:
    """Return what to do, to follow the text of an exception that does not say it."""
    if isinstance(exc, ValueError) and text_of(exc).startswith("Can't patch loop of type"):
        return ": nest_asyncio cannot patch uvloop; start llamactl with `--loop asyncio`"
    advice = advice_on(exc)
    return "" if advice is None else f": {advice}"


def _traceback_of(exc: BaseException) -> list[str] | None:
    """Return the last lines of a traceback. None: the exception's own code prevents it."""
    try:
        trace = traceback.TracebackException.from_exception(exc)
        _keep_own_frames(trace)
        lines = "".join(trace.format()).splitlines()
        text = "".join(trace.format_exception_only()).splitlines()
    except Exception:  # noqa: BLE001 - a user's properties and `__str__` may raise anything
        return None
    if len(text) > _TEXT_LINES and lines[-len(text) :] == text:
        kept = [*text[:_TEXT_LINES], f"... ({len(text) - _TEXT_LINES} more lines)"]
        lines = lines[-_TRACEBACK_LINES - len(text) : -len(text)] + kept
    return [_cut(line, _LINE_CHARACTERS) for line in lines[-_TRACEBACK_LINES:]]


def _keep_own_frames(trace: traceback.TracebackException) -> None:
    """Leave out the frames of the framework, from an exception and from those that led to it."""
    waiting: list[traceback.TracebackException | None] = [trace]
    while waiting:
        if (each := waiting.pop()) is not None:
            own = [frame for frame in each.stack if not frame.filename.startswith(_FRAMEWORK)]
            each.stack = traceback.StackSummary.from_list(own or each.stack)
            waiting += [each.__cause__, each.__context__, *(each.exceptions or ())]


def _cut(text: str, longest: int) -> str:
    """Return a text of about `longest` characters at most; one that was cut says so."""
    return text if len(text) <= longest else f"{text[:longest]}... (cut: it has {len(text)} characters)"
