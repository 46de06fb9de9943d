"""Output of the commands, whose reader may end before they do, as `head` does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from typer.core import TyperGroup

from llama_deploy.cli.exit_codes import ExitCode


def note(message: str) -> None:
    """Print a message to stderr. If stderr is closed, the command continues."""
    with suppress(BrokenPipeError):
        typer.echo(message, err=True)


class Commands(TyperGroup):
    """Commands that end quietly when their output is closed, as by `head`."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the command line. This prints the help and the version."""
        with _ending_quietly():
            return super().make_context(*args, **kwargs)

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command."""
        with _ending_quietly():
            return super().invoke(*args, **kwargs)


@contextmanager
def _ending_quietly() -> Iterator[None]:
    try:
        yield
    except (BrokenPipeError, SystemExit) as exc:
        # rich, which prints the help, makes a `SystemExit` of it.
        if not any(isinstance(each, BrokenPipeError) for each in (exc, exc.__context__)):
            raise
        _discard_output()
        sys.exit(ExitCode.BROKEN_PIPE)


@contextmanager
def optional_output() -> Iterator[None]:
    """Print in the body; if nobody reads it, this process continues without output."""
    try:
        yield
    except BrokenPipeError:
        _discard_output()


def _discard_output() -> None:
    """Discard what is in the buffer, too: the interpreter would report that it cannot flush it at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
