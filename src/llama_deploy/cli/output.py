"""Output of the commands, whose reader may end before they do, as `head` does."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import typer
from typer.core import TyperGroup
from typing_extensions import Buffer

from llama_deploy.cli.exit_codes import ExitCode

_STDOUT: Final = 1


def note(message: str) -> None:
    """Print a message to stderr. If stderr is closed or full, the command continues."""
    with suppress(OSError):
        typer.echo(message, err=True)


class OutputError(Exception):
    """Stdout cannot be written, for example because the disk is full."""


class Commands(TyperGroup):
    """Commands that end quietly when their output is closed, as by `head`."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        _open_outputs()
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the command line. This prints the help and the version."""
        with _ending_without_traceback():
            return super().make_context(*args, **kwargs)

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command."""
        with _ending_without_traceback():
            return super().invoke(*args, **kwargs)


class _RawStdout(io.RawIOBase):
    """Stdout, with an error of its own for everything but a reader that has ended."""

    def __init__(self, *, is_open: bool) -> None:
        self._is_open = is_open

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return _STDOUT

    def isatty(self) -> bool:
        return self._is_open and os.isatty(_STDOUT)

    def write(self, data: Buffer, /) -> int | None:
        if not self._is_open:
            raise BrokenPipeError
        try:
            return os.write(_STDOUT, data)
        except BlockingIOError:
            return None
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise OutputError(exc.strerror) from exc

    def discard(self) -> None:
        """Lose what is still to be written: the interpreter would report it at its end."""
        self._is_open = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)


def _open_outputs() -> None:
    """Make stdout and stderr such that writing to them raises what the commands expect; stdin exists.

    Characters that the encoding of stdout does not have are written as escapes. A closed stdout is one whose
    reader has ended. A closed descriptor is opened, because otherwise the next file would get its number.
    """
    is_open = sys.stdout is not None
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 - until the process ends
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_RawStdout(is_open=is_open)),
        encoding=sys.stdout.encoding if is_open else "utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


@contextmanager
def _ending_without_traceback() -> Iterator[None]:
    try:
        yield
    except (BrokenPipeError, OutputError, SystemExit) as exc:
        # rich, which prints the help, makes a `SystemExit` of a broken pipe.
        causes = [each for each in (exc, exc.__context__) if isinstance(each, BrokenPipeError | OutputError)]
        if not causes:
            raise
        _discard_stdout()
        if isinstance(causes[0], BrokenPipeError):
            sys.exit(ExitCode.BROKEN_PIPE)
        note(f"{typer.style('error:', fg='red', bold=True)} cannot write to stdout: {causes[0]}")
        sys.exit(ExitCode.OUTPUT)


@contextmanager
def optional_output() -> Iterator[None]:
    """Print in the body. If stdout is closed, the process continues without output."""
    try:
        yield
    except (BrokenPipeError, OutputError):
        _discard_stdout()


def _discard_stdout() -> None:
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _RawStdout):
        raw.discard()
