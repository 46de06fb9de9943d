"""The supervisor of `llamactl worker`, and what requests to stop mean.

This module imports nothing that other commands or workflows need, so that the process stays small.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NoReturn, Self

from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.logs import CommandLogging, LogFormat
from llama_deploy.supervisor.child_process import ChildCommand
from llama_deploy.supervisor.supervisor import Stop, Supervisor

_SAME_PRESS_SECONDS: Final = 0.3
"""Ctrl-C twice within this time counts once: a terminal and a wrapper may both send the signal."""


@dataclass(slots=True, eq=False)
class StopRequests:
    """What each request to stop means: drain, then hand back tasks, then exit at once.

    Args:
        on_stop: Called with each of the first two.
        note: Prints a message.
    """

    on_stop: Callable[[Stop], None]
    note: Callable[[str], None]
    _requests: int = field(default=0, init=False)
    _last: float = field(default=0.0, init=False)

    def terminate(self) -> None:
        """SIGTERM: drain; a repeated signal has no effect."""
        if self._requests == 0:
            self._request(Stop.DRAIN, "Waiting for running tasks, then stopping.")

    def interrupt(self) -> None:
        """Ctrl-C: drain, then hand back tasks, then exit."""
        if self._requests and time.monotonic() - self._last < _SAME_PRESS_SECONDS:
            return
        if self._requests == 0:
            self._request(
                Stop.DRAIN,
                "Waiting for running tasks, then stopping. Press Ctrl-C again to hand them back now.",
            )
        elif self._requests == 1:
            self._request(Stop.HAND_BACK, "Handing back the running tasks. Press Ctrl-C again to exit now.")
        else:
            os._exit(ExitCode.INTERRUPTED)  # the children end with this process

    def _request(self, stop: Stop, message: str) -> None:
        self._requests += 1
        self._last = time.monotonic()
        self.note(message)
        self.on_stop(stop)


@dataclass(frozen=True, slots=True)
class Supervising:
    """A program that starts a command in children: `python -m llama_deploy.cli.supervising`.

    The command replaces itself by it, because the libraries that it has imported would stay in memory.
    """

    processes: int
    verbose: bool
    log_format: LogFormat | None
    command: Sequence[str]
    """How a child is started: the program and its arguments."""

    def replace_this_process(self) -> NoReturn:
        """Run the program in place of this process, with the same id."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Without -P, modules in the working directory would be imported in place of those of Python.
        program = [sys.executable, "-P", "-m", __spec__.name]
        options = [str(self.processes), "verbose" if self.verbose else "", self.log_format or ""]
        os.execv(sys.executable, [*program, *options, *self.command])  # noqa: S606 - our own program

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Self:
        """Return what `replace_this_process` was told."""
        processes, verbose, log_format, *command = arguments
        return cls(int(processes), bool(verbose), LogFormat(log_format) if log_format else None, command)

    def run(self) -> int:
        """Run the children until Ctrl-C or SIGTERM; return the exit code."""
        CommandLogging(verbose=self.verbose, log_format=self.log_format)
        supervisor = Supervisor(ChildCommand(self.command), processes=self.processes)
        stops = StopRequests(supervisor.request, note=_note)
        signal.signal(signal.SIGINT, lambda *_: stops.interrupt())
        signal.signal(signal.SIGTERM, lambda *_: stops.terminate())
        code = supervisor.run()
        if code == 0:
            _note("Stopped.")
        return code


def _note(message: str) -> None:
    with suppress(BrokenPipeError):
        print(message, file=sys.stderr, flush=True)  # noqa: T201 - without the library that other commands use


if __name__ == "__main__":
    sys.exit(Supervising.from_arguments(sys.argv[1:]).run())
