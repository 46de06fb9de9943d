"""A service that is compatible with Amazon SQS, from the package `moto[server]`. It keeps all in memory."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from llama_deploy.testing.processes import free_port

_PATIENCE_SECONDS: Final = 60.0
_ROOT: Final = Path(__file__).parents[2]


class SqsServer:
    """One server, on one port for all its starts. A context manager that kills it at the end.

    Args:
        folder: Where its log is written.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.endpoint_url = f"http://127.0.0.1:{self.port}"
        self.url = f"aws+{self.endpoint_url}?region=us-east-1"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens, again after it was killed. It knows nothing of before."""
        _need_moto()
        command = [sys.executable, "-m", "tests.servers.moto_program", str(self.port)]
        with (self._folder / "moto.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=_ROOT, stdout=log, stderr=log)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """End it. All that it held is gone."""
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


def _need_moto() -> None:
    """Without moto, skip the test, but fail it where all must run."""
    if importlib.util.find_spec("moto") is None:
        reason = "no moto; it is in the package moto[server]"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
