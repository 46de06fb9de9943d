"""Where `llamactl worker` answers probes of its health. A supervisor imports this, so it stays small."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from llama_deploy.errors import BindError
from llama_deploy.health import READY_PATH
from llama_deploy.supervisor.health_server import HealthServer

if TYPE_CHECKING:
    from llama_deploy.web.server_tls import TlsFiles


@dataclass(frozen=True, slots=True)
class HealthAddress:
    """An address to listen on."""

    host: str
    port: int
    """0: the system chooses one."""
    tls: tuple[str, str, str | None] | None = None
    """The paths of the certificate, of its key and of the authorities of clients; see `TlsFiles`. None: the
    server speaks plain HTTP."""

    @classmethod
    def of(cls, host: str, port: int, *, tls: TlsFiles | None) -> Self:
        """Return an address with the files of its certificate."""
        if tls is None:
            return cls(host, port)
        return cls(
            host, port, (str(tls.cert), str(tls.key), None if tls.client_ca is None else str(tls.client_ca))
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` has written."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def listen(self, server: HealthServer) -> str:
        """Start a server; return the URL of its `/health/ready`.

        Raises:
            BindError: The address cannot be bound.
            ConfigError: A file of `tls` cannot be used.
        """
        if self.tls is not None:
            from llama_deploy.web.server_tls import ServerTls, TlsFiles  # noqa: PLC0415 - loads OpenSSL

            cert, key, client_ca = self.tls
            server.tls = ServerTls(
                TlsFiles(Path(cert), Path(key), None if client_ca is None else Path(client_ca))
            )
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
        return f"{'http' if self.tls is None else 'https'}://{shown}:{port}{READY_PATH}"
