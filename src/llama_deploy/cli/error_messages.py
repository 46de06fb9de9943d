"""What a user reads when a command fails: one line, what to do next, an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer

from llama_deploy.errors import (
    InvalidRequestError,
    LlamaDeployError,
    ServiceNotFoundError,
    SessionNotFoundError,
    StoreLockedError,
    TaskEndedError,
    TaskTimeoutError,
    UnavailableError,
)


class ExitCode(IntEnum):
    """What the exit code of a command says."""

    FAILED = 1
    """The task failed, or the command could not do its work."""
    USAGE = 2
    """The command was not understood."""
    NOT_FOUND = 3
    """No control plane answers, or it does not know the service or session."""
    TIMED_OUT = 124
    """It took longer than `--timeout`; the code of `timeout` of GNU coreutils."""
    INTERRUPTED = 130
    """Ended by Ctrl-C."""


class CommandError(Exception):
    """A command cannot go on.

    Attributes:
        hint: What to do next, or None.
        exit_code: How the process ends.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, exit_code: ExitCode = ExitCode.USAGE
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code


@contextmanager
def reported(*, verbose: bool, server: str = "") -> Iterator[None]:
    """Print what the body raises to stderr and end the process with its exit code.

    Args:
        verbose: Print the traceback too.
        server: The control plane that the body talks to, for the hint.
    """
    try:
        yield
    except (CommandError, LlamaDeployError) as exc:
        problem = exc if isinstance(exc, CommandError) else _explain(exc, server)
        if verbose:
            traceback.print_exc()
        complain(str(problem), hint=problem.hint)
        sys.exit(problem.exit_code)


def complain(message: str, *, hint: str | None = None) -> None:
    """Print an error, and what to do next, to stderr."""
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {message}", err=True)
    if hint:
        typer.echo(f"{typer.style('hint:', fg='cyan')} {hint}", err=True)


def _explain(exc: LlamaDeployError, server: str) -> CommandError:
    """Return an error of the package as a user of the command line reads it."""
    hint: str | None = None
    code = ExitCode.FAILED
    if isinstance(exc, UnavailableError) and server:
        code = ExitCode.NOT_FOUND
        hint = f"no control plane answers at {server}: is `llamactl serve` running? -s names another one"
    elif isinstance(exc, ServiceNotFoundError):
        code, hint = ExitCode.NOT_FOUND, "`llamactl status` lists the services"
    elif isinstance(exc, SessionNotFoundError):
        code, hint = ExitCode.NOT_FOUND, "`llamactl sessions create` makes one and prints its id"
    elif isinstance(exc, StoreLockedError):
        hint = "stop that one, or choose another folder with --data-dir"
    elif isinstance(exc, TaskTimeoutError):
        code, hint = ExitCode.TIMED_OUT, "-t SECONDS before the command sets another limit"
    elif isinstance(exc, InvalidRequestError) and not isinstance(exc, TaskEndedError):
        code = ExitCode.USAGE
    return CommandError(str(exc), hint=hint, exit_code=code)
