"""How a command reports an error: one line, a hint what to do next, an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.output import note
from llama_deploy.errors import (
    InvalidRequestError,
    LlamaDeployError,
    ServiceNotFoundError,
    SessionNotFoundError,
    StoreLockedError,
    TaskNotFoundError,
    TaskTimeoutError,
    UnavailableError,
    WrongServerError,
)
from llama_deploy.printable import printable, printable_traceback


class CommandError(Exception):
    """A command failed.

    Attributes:
        hint: What to do next, or None.
        exit_code: The exit code of the process.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, exit_code: ExitCode = ExitCode.USAGE
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code


@contextmanager
def reported(*, verbose: bool, servers: Sequence[str] = ()) -> Iterator[None]:
    """Print an error of the body to stderr and exit with its code.

    Args:
        verbose: Also print the traceback.
        servers: The URLs of the control plane that the body calls, for the hint.
    """
    try:
        yield
    except (CommandError, LlamaDeployError) as exc:
        problem = exc if isinstance(exc, CommandError) else _explain(exc, servers)
        if verbose:
            note(printable_traceback(traceback.format_exc().rstrip()))
        print_error(str(problem), hint=problem.hint)
        sys.exit(problem.exit_code)


def print_error(message: str, *, hint: str | None = None) -> None:
    """Print an error and a hint what to do next to stderr."""
    note(f"{typer.style('error:', fg='red', bold=True)} {printable(message)}")
    if hint:
        print_hint(hint)


def print_hint(text: str) -> None:
    """Print what to do next to stderr."""
    note(f"{typer.style('hint:', fg='cyan')} {printable(text)}")


def _explain(exc: LlamaDeployError, servers: Sequence[str]) -> CommandError:
    """Return an error of the package with a hint and an exit code for the command line."""
    message, hint, code = str(exc), None, ExitCode.FAILED
    if isinstance(exc, UnavailableError) and any(url in message for url in servers):
        code = ExitCode.NOT_FOUND
        message = f"cannot reach the control plane at {' or '.join(servers)}: {_reason(exc)}"
        hint = "start a control plane with `llamactl serve`, or pass another URL: llamactl -s URL ..."
    elif isinstance(exc, ServiceNotFoundError):
        code, hint = ExitCode.NOT_FOUND, "start a service with `llamactl worker WORKFLOW`"
    elif isinstance(exc, SessionNotFoundError):
        code, hint = ExitCode.NOT_FOUND, "create a session with `llamactl sessions create`"
    elif isinstance(exc, TaskNotFoundError):
        code = ExitCode.NOT_FOUND
    elif isinstance(exc, WrongServerError):
        code = ExitCode.NOT_FOUND
        message = f"{' or '.join(servers)}: {exc}"
        hint = "pass the URL of the control plane: llamactl -s URL ..."
    elif isinstance(exc, StoreLockedError):
        hint = "stop the other process, or choose another directory with --data-dir"
    elif isinstance(exc, TaskTimeoutError):
        code, hint = ExitCode.TIMED_OUT, "set a longer timeout: llamactl -t SECONDS ..."
    elif isinstance(exc, InvalidRequestError):
        code = ExitCode.USAGE
    return CommandError(message, hint=hint, exit_code=code)


def _reason(exc: UnavailableError) -> str:
    """Return why a server cannot be reached."""
    from llama_deploy.web.http_exchange import reason_of  # noqa: PLC0415 - imports pydantic

    return str(exc) if exc.__cause__ is None else reason_of(exc.__cause__)
