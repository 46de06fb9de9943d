"""Run an ASGI application in the current event loop, with a real port and a real readiness."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from types import TracebackType
from typing import Final, Self

import uvicorn
from starlette.types import ASGIApp

from llama_deploy.errors import ConfigError

_BACKLOG: Final = 2048
_GRACE_SECONDS: Final = 2
"""How long requests under way may take to end after `close`."""


class HttpServer:
    """A listening HTTP server: `await HttpServer.start(...)`, then `close` it or use `async with`.

    Unlike `uvicorn.run` it handles no signals, configures no logging and has no timer of its own, so an idle
    server costs nothing.
    """

    def __init__(self, server: uvicorn.Server, listener: socket.socket) -> None:
        self._server = server
        self._listener = listener
        self._closed = asyncio.Event()
        self.host, self.port = listener.getsockname()[:2]

    @classmethod
    async def start(cls, app: ASGIApp, *, host: str, port: int, allow_remote: bool = False) -> HttpServer:
        """Listen and run the application's start-up; returns when requests are served.

        Args:
            app: The application.
            host: The address to bind.
            port: The port to bind; 0 lets the system choose, `port` then tells which.
            allow_remote: Whether other machines may reach it.

        Raises:
            ConfigError: The address cannot be bound, or other machines could reach it without `allow_remote`.
        """
        if not allow_remote and not is_loopback(host):
            raise ConfigError(
                f"{host}:{port} can be reached from other machines, and whoever reaches it can run tasks:"
                " there is no authentication. Bind 127.0.0.1, or set allow_remote if the network is yours"
            )
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            date_header=False,
            server_header=False,
            proxy_headers=False,
            http="httptools",
            ws="none",
            lifespan="on",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        listener = _bind(host, port)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        if server.should_exit:
            listener.close()
            raise ConfigError(f"the application on {host}:{port} failed to start; see the log")
        return cls(server, listener)

    async def wait_closed(self) -> None:
        """Wait until `close` was called."""
        await self._closed.wait()

    async def close(self) -> None:
        """Stop listening, let requests under way end, run the application's shutdown. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        await self._server.shutdown(sockets=[self._listener])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


def is_loopback(host: str) -> bool:
    """Whether an address is reached from its own machine only; of names, only `localhost` counts."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets that name their protocol; without it an answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as exc:
        listener.close()
        hint = "; another process listens there" if exc.errno == errno.EADDRINUSE else ""
        raise ConfigError(
            f"cannot listen on {host}:{port}: {exc.strerror}{hint}; choose another port"
        ) from exc
    return listener
