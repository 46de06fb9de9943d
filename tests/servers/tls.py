"""How servers of the tests speak TLS, and require a certificate of their clients."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final, Self

from tests.servers.certificates import Certificate
from tests.servers.process import HOST

_PIECE: Final = 65536
_SSL_REQUEST_BYTES: Final = 8
"""The length of what a client of PostgreSQL sends before TLS; the answer is `S`."""


def nats_arguments(folder: Path, own: Certificate, client_ca: Path) -> list[str]:
    """Return arguments with a file in `folder`, because the server reloads only what stands in a file."""
    certificate, key = own.files
    config = folder / "nats.conf"
    config.write_text(
        f'tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{client_ca}", verify: true }}\n'
    )
    return ["-c", str(config)]


def rabbitmq_settings(port: int, own: Certificate, client_ca: Path) -> list[str]:
    certificate, key = own.files
    return [
        f"listeners.ssl.1 = 127.0.0.1:{port}",
        f"ssl_options.cacertfile = {client_ca}",
        f"ssl_options.certfile = {certificate}",
        f"ssl_options.keyfile = {key}",
        "ssl_options.verify = verify_peer",
        "ssl_options.fail_if_no_peer_cert = true",
    ]


class TlsFront:
    """Speaks TLS in front of a server whose packaged build cannot. A context manager.

    Args:
        target: The port of the server.
        own: The certificate to show.
        client_ca: The authorities of clients. In front of PostgreSQL, each connection reads the files.
        is_postgresql: Whether clients ask for TLS as those of PostgreSQL do, over a plain connection.
    """

    def __init__(
        self, target: int, own: Certificate, client_ca: Path, *, is_postgresql: bool = False
    ) -> None:
        self._target = target
        self._own = own
        self._client_ca = client_ca
        self._is_postgresql = is_postgresql
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        context = None if self._is_postgresql else self._context()
        self._server = await asyncio.start_server(self._serve, HOST, 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """End all connections, so that clients open others."""
        for writer in self._open:
            writer.transport.abort()

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._client_ca)
        context.load_cert_chain(*self._own.files)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self._is_postgresql:
                await reader.readexactly(_SSL_REQUEST_BYTES)
                writer.write(b"S")
                await writer.start_tls(self._context())
            there = await asyncio.open_connection(HOST, self._target)
            self._open.add(there[1])
            await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))
            self._open.discard(there[1])
        except (OSError, asyncio.IncompleteReadError):
            pass  # a client that is not admitted, or the end
        finally:
            self._open.discard(writer)
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
