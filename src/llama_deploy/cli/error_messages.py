"""How a command reports an error: one line, a hint what to do next, an exit code."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import typer

from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.output import note
from llama_deploy.errors import (
    ApiKeyNotFoundError,
    AuthenticationError,
    InvalidRequestError,
    LlamaDeployError,
    PermissionDeniedError,
    QuestionClosedError,
    QuestionNotFoundError,
    ServiceNotFoundError,
    SessionNotFoundError,
    StepNotFoundError,
    StoreLockedError,
    TaskFinishedError,
    TaskNotFoundError,
    TaskTimeoutError,
    UnavailableError,
    WrongServerError,
)
from llama_deploy.printable import printable, printable_traceback

if TYPE_CHECKING:
    from llama_deploy.cli.options import Settings


class CommandError(Exception):
    """A command failed.

    Attributes:
        hint: What to do next, or None.
        exit_code: The exit code of the process.
        code: `LlamaDeployError.code` of the error that it explains, or `usage_error`.
        facts: Its facts.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        exit_code: ExitCode = ExitCode.USAGE,
        code: str = "usage_error",
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code
        self.code = code
        self.facts = facts


@contextmanager
def reported(settings: Settings, *, servers: Sequence[str] = ()) -> Iterator[None]:
    """Print an error of the body to stderr and exit with its code.

    Args:
        settings: Say whether to print the traceback too, and whether the error is one line of JSON.
        servers: The URLs of the control plane that the body calls, for the hint.
    """
    try:
        yield
    except (CommandError, LlamaDeployError) as exc:
        problem = exc if isinstance(exc, CommandError) else _explain(exc, servers)
        if settings.verbose:
            note(printable_traceback(traceback.format_exc().rstrip()))
        if settings.as_json:
            _print_json(problem)
        else:
            print_error(str(problem), hint=problem.hint)
        sys.exit(problem.exit_code)


def _print_json(problem: CommandError) -> None:
    error = {
        "error": problem.code,
        "message": str(problem),
        "hint": problem.hint,
        "exit_code": problem.exit_code.value,
        "facts": dict(problem.facts),
    }
    note(json.dumps(error, default=str))


def print_error(message: str, *, hint: str | None = None) -> None:
    """Print an error and a hint what to do next to stderr."""
    note(f"{typer.style('error:', fg='red', bold=True)} {printable(message)}")
    if hint:
        print_hint(hint)


def print_hint(text: str) -> None:
    """Print what to do next to stderr."""
    note(f"{typer.style('hint:', fg='cyan')} {printable(text)}")


_NEXT: Final[Mapping[type[LlamaDeployError], tuple[ExitCode, str | None]]] = {
    ServiceNotFoundError: (ExitCode.NOT_FOUND, "start a service with `llamactl worker WORKFLOW`"),
    SessionNotFoundError: (
        ExitCode.NOT_FOUND,
        "list the sessions with `llamactl sessions list`, or create one with `llamactl sessions create`",
    ),
    TaskNotFoundError: (ExitCode.NOT_FOUND, "list the tasks with `llamactl tasks list`"),
    StepNotFoundError: (ExitCode.NOT_FOUND, "see the ids of its steps with `llamactl tasks show TASK`"),
    QuestionNotFoundError: (
        ExitCode.NOT_FOUND,
        "list the open questions with `llamactl inbox list`",
    ),
    ApiKeyNotFoundError: (ExitCode.NOT_FOUND, None),
    TaskFinishedError: (ExitCode.FAILED, "see how it ended with `llamactl tasks show TASK`"),
    QuestionClosedError: (ExitCode.FAILED, "list the questions that are open with `llamactl inbox list`"),
    StoreLockedError: (
        ExitCode.FAILED,
        "stop the other process, or choose another directory with --data-dir",
    ),
    TaskTimeoutError: (ExitCode.TIMED_OUT, "set a longer timeout: llamactl -t SECONDS ..."),
    InvalidRequestError: (ExitCode.USAGE, None),
    AuthenticationError: (
        ExitCode.FAILED,
        "set LLAMA_DEPLOY_API_KEY to a key that `llamactl keys create` has printed",
    ),
    PermissionDeniedError: (ExitCode.FAILED, "set LLAMA_DEPLOY_API_KEY to a key with this scope"),
}
"""The exit code of an error, and what to do next. The first class that fits counts."""


def _explain(exc: LlamaDeployError, servers: Sequence[str]) -> CommandError:
    """Return an error of the package with a hint and an exit code for the command line."""
    message, hint, code = str(exc), None, ExitCode.FAILED
    if isinstance(exc, UnavailableError) and any(url in message for url in servers):
        code = ExitCode.NOT_FOUND
        message = f"cannot reach the control plane at {' or '.join(servers)}: {_reason(exc)}"
        if not _is_of_tls(exc):  # which says what to do
            hint = "start a control plane with `llamactl serve`, or pass another URL: llamactl -s URL ..."
    elif isinstance(exc, WrongServerError):
        code = ExitCode.NOT_FOUND
        message = f"{' or '.join(servers)}: {exc}"
        hint = "pass the URL of the control plane: llamactl -s URL ..."
    else:
        for kind, told in _NEXT.items():
            if isinstance(exc, kind):
                code, hint = told
                break
    return CommandError(message, hint=hint, exit_code=code, code=exc.code, facts=exc.facts())


def _reason(exc: UnavailableError) -> str:
    """Return why a server cannot be reached."""
    from llama_deploy.web.http_exchange import reason_of  # noqa: PLC0415 - imports pydantic

    return str(exc) if exc.__cause__ is None else reason_of(exc.__cause__)


def _is_of_tls(exc: UnavailableError) -> bool:
    """Whether a server responds, and TLS is not agreed on."""
    import ssl  # noqa: PLC0415 - as above

    from llama_deploy.web.http_exchange import os_error_of  # noqa: PLC0415 - as above

    return exc.__cause__ is not None and isinstance(os_error_of(exc.__cause__), ssl.SSLError)
