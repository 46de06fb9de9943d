"""The supervisor of `llamactl worker`, and what requests to stop mean.

This module imports nothing that other commands or workflows need, so that the process stays small.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn, Self

from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.logs import CommandLogging, LogFormat
from llama_deploy.cli.serving.health_address import HealthAddress
from llama_deploy.cli.serving.signal_notes import note_in_handler
from llama_deploy.errors import ConfigError
from llama_deploy.supervisor.child_process import ChildCommand
from llama_deploy.supervisor.health_board import HealthBoard
from llama_deploy.supervisor.health_server import HealthServer
from llama_deploy.supervisor.presses import HAND_BACK, HANDING_BACK, Presses, draining
from llama_deploy.supervisor.supervisor import Stop, Supervisor


@dataclass(frozen=True, slots=True)
class Supervising:
    """A program that starts a command in children: `python -m llama_deploy.cli.serving.supervising`.

    The command replaces itself by it, because the libraries that it has imported would stay in memory.
    """

    processes: int
    verbose: bool
    log_format: LogFormat | None
    health: HealthAddress | None
    """Where probes are answered. None: nowhere."""
    command: Sequence[str]
    """How a child is started: the program and its arguments."""

    def replace_this_process(self) -> NoReturn:
        """Run the program in place of this process, with the same id."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Without -P, modules in the working directory would be imported in place of those of Python.
        options_of_python = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
        program = [sys.executable, *options_of_python, "-P", "-m", __spec__.name]
        options = [str(self.processes), "verbose" if self.verbose else "", self.log_format or ""]
        options.append("" if self.health is None else self.health.to_json())
        os.execv(sys.executable, [*program, *options, *self.command])  # noqa: S606 - our own program

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Self:
        """Return what `replace_this_process` was told."""
        processes, verbose, log_format, health, *command = arguments
        return cls(
            int(processes),
            bool(verbose),
            LogFormat(log_format) if log_format else None,
            HealthAddress.from_json(health) if health else None,
            command,
        )

    def run(self) -> int:
        """Run the children until Ctrl-C or SIGTERM; return the exit code."""
        CommandLogging(verbose=self.verbose, log_format=self.log_format)
        board = HealthBoard()
        try:
            scraped: list[Supervisor] = []
            health_url = self._answer_probes(board, lambda: "".join(each.metrics() for each in scraped))
        except ConfigError as exc:
            note_in_handler(f"error: {exc}")
            return ExitCode.FAILED
        supervisor = Supervisor(
            ChildCommand(self.command, health_url=health_url), processes=self.processes, board=board
        )
        scraped.append(supervisor)
        signals = _Signals(supervisor)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signals)
        code = supervisor.run()
        if signals.first is None:
            return code
        note_in_handler("Stopped.")
        return 128 + signals.first if code else 0

    def _answer_probes(self, board: HealthBoard, metrics: Callable[[], str]) -> str | None:
        """Answer probes and requests for metrics while this process lives; return the URL."""
        if self.health is None:
            return None
        server = HealthServer(
            live=lambda: {"supervisor": board.supervisor()}, ready=board.checks, metrics=metrics
        )
        return self.health.listen(server)


@dataclass(slots=True, eq=False)
class _Signals:
    """The signal handler: drains at first, then hands back tasks, then exits."""

    supervisor: Supervisor
    first: int | None = None
    """The first signal. None: there was none."""
    _presses: Presses = field(default_factory=Presses)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Drain. A second Ctrl-C hands back tasks, and a third one exits. Further SIGTERMs are ignored."""
        del frame
        if self.first is None:
            self.first = signum
            self._presses.add()
            note_in_handler(draining(signum))
            self.supervisor.request(Stop.DRAIN)
        elif signum == signal.SIGINT and (count := self._presses.add()) is not None:
            if count == HAND_BACK:
                note_in_handler(HANDING_BACK)
                self.supervisor.request(Stop.HAND_BACK)
            else:
                os._exit(ExitCode.INTERRUPTED)  # the children end with this process


if __name__ == "__main__":
    sys.exit(Supervising.from_arguments(sys.argv[1:]).run())
