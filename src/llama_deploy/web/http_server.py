"""Run an ASGI application in the current event loop, and know when it is ready."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from functools import partial
from typing import Final, Self, cast

import uvicorn
from starlette.types import ASGIApp

from llama_deploy.concurrency.forked_children import forget, keep_from_children
from llama_deploy.errors import BindError, ConfigError
from llama_deploy.web.connection_limit import DEFAULT_MAX_CONNECTIONS, ConnectionLimit
from llama_deploy.web.dead_peers import watched
from llama_deploy.web.http_protocol import PATIENCE_SECONDS, BoundedHttpProtocol
from llama_deploy.web.loopback import is_loopback
from llama_deploy.web.server_tls import HANDSHAKE_SECONDS, ServerTls, TlsFiles

_BACKLOG: Final = 2048
_GRACE_SECONDS: Final = 1
"""How long running requests may take to end after `close`."""


class HttpServer:
    """A listening HTTP server: `await HttpServer.start(...)`, then `close` it or use `async with`.

    Unlike `uvicorn.run` it handles no signals, configures no logging and has no timer of its own, so an idle
    server uses no CPU.
    """

    def __init__(self, server: uvicorn.Server, listener: socket.socket) -> None:
        self._server = server
        self._listener = listener
        self._closed = asyncio.Event()
        self.host, self.port = listener.getsockname()[:2]

    @classmethod
    async def start(
        cls,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        allow_remote: bool = False,
        patience: float = PATIENCE_SECONDS,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        tls: TlsFiles | None = None,
    ) -> HttpServer:
        """Listen and run the application's start-up; returns when requests are served.

        Args:
            app: The application.
            host: The address to bind.
            port: The port to bind; with 0 the system chooses one, and the attribute `port` has it.
            allow_remote: Whether other machines may connect.
            patience: How many seconds a client may take for the headers of a request, and be silent within
                its body.
            max_connections: How many connections may be open at the same time; further ones get 503.
            tls: The certificate. None: the server speaks plain HTTP.

        Raises:
            BindError: The address cannot be bound.
            ConfigError: It is not a loopback address and `allow_remote` is not set, or a file of `tls`
                cannot be used.
        """
        if not allow_remote and not is_loopback(host):
            raise ConfigError(
                f"other machines can reach {host}:{port} and run tasks, because there is no authentication;"
                " bind 127.0.0.1, turn on authentication, or set allow_remote if you trust the network"
            )
        secured = None if tls is None else ServerTls(tls, admits_anonymous=True)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            date_header=False,
            server_header=False,
            proxy_headers=False,
            # It is only called, like a class.
            http=cast(
                "type[asyncio.Protocol]",
                partial(
                    BoundedHttpProtocol,
                    patience=patience,
                    limit=ConnectionLimit(max_connections),
                    asks_clients=secured is not None and secured.asks_clients,
                ),
            ),
            ws="none",
            lifespan="on",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        listener = _bind(host, port)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener] if secured is None else [])
        if server.should_exit:
            forget(listener.fileno())
            listener.close()
            raise ConfigError(f"the application on {host}:{port} failed to start; see the log")
        if secured is not None:
            # As uvicorn does, which has no setting for the time of a handshake.
            server.servers.append(
                await asyncio.get_running_loop().create_server(
                    partial(
                        cast("Callable[..., asyncio.Protocol]", config.http_protocol_class),
                        config=config,
                        server_state=server.server_state,
                        app_state=server.lifespan.state,
                    ),
                    sock=listener,
                    backlog=_BACKLOG,
                    ssl=secured.context,
                    ssl_handshake_timeout=HANDSHAKE_SECONDS,
                )
            )
        return cls(server, listener)

    def connections(self) -> list[socket.socket]:
        """Return the sockets of the clients that are connected."""
        transports = [connection.transport for connection in self._server.server_state.connections]
        return [transport.get_extra_info("socket") for transport in transports if transport is not None]

    async def wait_closed(self) -> None:
        """Wait until `close` was called."""
        await self._closed.wait()

    async def close(self) -> None:
        """Stop listening, let running requests end, run the application's shutdown. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        forget(self._listener.fileno())
        await self._server.shutdown(sockets=[self._listener])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets that name their protocol; without it responses are 40 ms late.
    listener = watched(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as exc:
        listener.close()
        reason = "another process uses this port" if exc.errno == errno.EADDRINUSE else exc.strerror
        raise BindError(
            f"cannot listen on {host}:{port}: {reason}; set another address or port", host=host, port=port
        ) from exc
    keep_from_children(listener.fileno())
    return listener
