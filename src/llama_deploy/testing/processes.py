"""Real processes for tests: started, watched, killed, and never left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_LOOK_EVERY_SECONDS: Final = 0.02
_PATIENCE_SECONDS: Final = 90.0


def free_port() -> int:
    """Return a port of the loopback interface that is free now, for programs that must be told one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """A Python program as a process of its own; a context manager that kills it at the end.

    Args:
        argv: The arguments of the interpreter, such as `["program.py", "argument"]` or `["-m", "module"]`.
        output: The file to which it writes what it prints; kept, so that a failed test can show it.
        env: Environment variables beside those of this process.
    """

    def __init__(self, argv: Sequence[str], *, output: Path, env: Mapping[str, str] | None = None) -> None:
        self._argv = [sys.executable, "-u", *argv]
        self._env = {**os.environ, **(env or {})}
        self.output = output
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._live().pid

    @property
    def text(self) -> str:
        """All that it has printed so far, over all its starts."""
        return self.output.read_text(errors="replace")

    def start(self) -> Self:
        """Start it, again after it has ended."""
        with self.output.open("ab") as log:
            self._process = subprocess.Popen(self._argv, env=self._env, stdout=log, stderr=subprocess.STDOUT)
        return self

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        self._live().kill()
        self._live().wait()

    def pause(self) -> None:
        """Stop it where it stands (SIGSTOP)."""
        self._live().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on (SIGCONT)."""
        self._live().send_signal(signal.SIGCONT)

    def stop(self, signum: int = signal.SIGTERM, *, seconds: float = _PATIENCE_SECONDS) -> int:
        """Ask it to end and return its exit status.

        Args:
            signum: The signal to send.
            seconds: How long it may take.

        Raises:
            TimeoutError: It has not ended in time; what it printed is in the error.
        """
        self._live().send_signal(signum)
        return self.wait(seconds=seconds)

    def wait(self, *, seconds: float = _PATIENCE_SECONDS) -> int:
        """Wait until it has ended and return its exit status.

        Raises:
            TimeoutError: It has not ended in time; what it printed is in the error.
        """
        try:
            return self._live().wait(seconds)
        except subprocess.TimeoutExpired as exc:
            raise TimeoutError(
                f"{self._argv} still runs after {seconds} s; it printed:\n{self.text}"
            ) from exc

    def wait_for_output(self, pattern: str, *, seconds: float = _PATIENCE_SECONDS) -> re.Match[str]:
        """Wait until what it has printed matches `pattern`.

        Raises:
            TimeoutError: It ended without, or has not printed it in time.
        """
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.text)) is None:
            ended = self._live().poll()
            if ended is not None or time.monotonic() > deadline:
                state = "runs" if ended is None else f"ended with {ended}"
                raise TimeoutError(f"{self._argv} {state} and did not print {pattern!r}:\n{self.text}")
            time.sleep(_LOOK_EVERY_SECONDS)
        return found

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _live(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self._argv} was not started")
        return self._process
