"""Where `llamactl worker` answers probes of its health. A supervisor imports this, so it stays small."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Self

from llama_deploy.errors import BindError
from llama_deploy.health import READY_PATH
from llama_deploy.supervisor.health_server import HealthServer


@dataclass(frozen=True, slots=True)
class HealthAddress:
    """An address to listen on."""

    host: str
    port: int
    """0: the system chooses one."""

    @classmethod
    def from_text(cls, text: str) -> Self | None:
        """Return what `str` has written. Empty: None."""
        host, _, port = text.rpartition(":")
        return cls(host, int(port)) if host else None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def listen(self, server: HealthServer) -> str:
        """Start a server; return the URL of its `/health/ready`.

        Raises:
            BindError: The address cannot be bound.
        """
        try:
            port = server.start(self.host, self.port)
        except OSError as exc:
            in_use = exc.errno == errno.EADDRINUSE
            reason = "another process uses this port" if in_use else os.strerror(exc.errno or 0)
            raise BindError(
                f"cannot listen on {self} for probes: {reason}; pass another --port, or 0",
                host=self.host,
                port=self.port,
            ) from exc
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{shown}:{port}{READY_PATH}"
