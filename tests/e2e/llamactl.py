"""Runs `llamactl` in processes of its own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import queue
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from llama_deploy.testing.conditions import eventually

LLAMACTL = (sys.executable, "-m", "llama_deploy.cli")
PATIENCE = 60.0


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


class Process:
    """A command that runs; its stderr goes to a file or to `stderr`, its stdout is read by a thread."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        stderr: int | None = None,
        program: Sequence[str] = LLAMACTL,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.errors = folder / f"stderr-{time.monotonic_ns()}.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*program, *arguments],
                cwd=folder,
                env={**environment(), **(env or {})},
                stdout=subprocess.PIPE,
                stderr=errors if stderr is None else stderr,
                text=True,
                process_group=0,  # as a shell starts it
            )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put("")

    def line(self, *, seconds: float = PATIENCE) -> str:
        """Return the next line of stdout, which comes within `seconds`."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            pytest.fail(f"no output; stderr: {self.errors.read_text()}")
        assert line, f"it has ended; stderr: {self.errors.read_text()}"
        return line.rstrip("\n")

    def has_output(self) -> bool:
        """Whether a line of stdout is there that was not read."""
        return not self._lines.empty()

    def error_line(self) -> str:
        """Return the first line of stderr, once it is there."""
        asyncio.run(eventually(lambda: "\n" in self.errors.read_text(), seconds=PATIENCE))
        return self.errors.read_text().splitlines()[0]

    def end(self, signum: signal.Signals) -> tuple[int, str]:
        """Send a signal; return exit code and stderr."""
        self.process.send_signal(signum)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        code = self.process.wait(PATIENCE)
        return code, self.errors.read_text()

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # and what it has left behind
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)


@contextmanager
def started(
    folder: Path,
    *arguments: str,
    stderr: int | None = None,
    program: Sequence[str] = LLAMACTL,
    env: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    process = Process(folder, *arguments, stderr=stderr, program=program, env=env)
    try:
        yield process
    finally:
        process.close()


ANY_PORTS = ("--port", "0", "--queue-port", "0")


def llamactl(
    folder: Path, *arguments: str, server: str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    named = ("-s", server) if server else ()
    return subprocess.run(
        [*LLAMACTL, *named, *arguments],
        cwd=folder,
        env={**environment(), **(env or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def llamactl_in_terminal(folder: Path, *arguments: str, columns: int) -> str:
    """Return what a command prints to a terminal of this width."""
    own, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [*LLAMACTL, *arguments],
        cwd=folder,
        env={name: value for name, value in environment().items() if name != "COLUMNS"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    printed = bytearray()
    with os.fdopen(own, "rb", buffering=0) as output:
        try:
            while chunk := output.read(4096):
                printed += chunk
        except OSError:
            pass  # Linux reports the end of a terminal like this
    process.wait(PATIENCE)
    return printed.decode().replace("\r\n", "\n")
