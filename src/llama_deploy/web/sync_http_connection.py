"""HTTP connections for threads without an event loop, with the interface and the errors of `HttpConnection`.

A process that only needs these is small: neither asyncio nor its HTTP client is imported.
"""

from __future__ import annotations

import builtins
import socket
import ssl
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

import urllib3

from llama_deploy.errors import BlockingCallError
from llama_deploy.web.client_tls import ClientTls
from llama_deploy.web.connection_settings import DEFAULT_TIMEOUT, Address, ConnectionSettings
from llama_deploy.web.dead_peers import SOCKET_OPTIONS
from llama_deploy.web.http_exchange import (
    AWAY,
    CONNECT_SECONDS,
    HttpAnswer,
    HttpRequest,
    decode,
    encode,
    note_certificate,
    translated,
    unavailable,
    unreachable,
)
from llama_deploy.web.problems import from_problem
from llama_deploy.web.replicas import Replicas

_BROKEN: Final = (urllib3.exceptions.HTTPError, TimeoutError, OSError)
"""What the driver raises."""


def _is_unsent(exc: BaseException) -> bool:
    """Whether a request has certainly not been sent, because no connection was opened."""
    if isinstance(exc, urllib3.exceptions.SSLError):
        # Other errors of TLS may come later; a certificate is verified before anything is sent.
        return bool(exc.args) and isinstance(exc.args[0], ssl.SSLCertVerificationError)
    return isinstance(exc, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)


class SyncHttpConnection:
    """A pool of kept-alive connections for threads without an event loop. `close` it.

    Args:
        address: As for `HttpConnection`.
        pool_size: How many connections to each replica are kept; more threads get one for each request.

    Raises:
        ConfigError: The address or a setting is malformed.
    """

    def __init__(self, address: Address, *, pool_size: int = 256) -> None:
        self.settings = ConnectionSettings.of(address)
        self._replicas = Replicas(self.settings.urls)
        self._pool_size = pool_size
        self._tls = ClientTls.of(self.settings)
        self._pool: tuple[ssl.SSLContext | None, urllib3.PoolManager] | None = None

    @property
    def base_url(self) -> str:
        """The URL of the replica that the next request goes to."""
        return self._replicas.current

    def _live_pool(self) -> urllib3.PoolManager:
        context, live = self._tls.current(), self._pool
        if live is not None and live[0] is context:
            return live[1]
        pool = urllib3.PoolManager(
            num_pools=len(self._replicas),
            maxsize=self._pool_size,
            retries=False,
            ssl_context=context,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), *SOCKET_OPTIONS],
        )
        # If threads begin at the same time, the pool of one stays. Those before close when nothing uses them.
        self._pool = context, pool
        return pool

    def _open(self, request: HttpRequest, *, preload: bool) -> tuple[str, urllib3.BaseHTTPResponse]:
        """Send a request to the first replica that can be reached; return its URL and its response.

        Raises:
            BlockingCallError: This thread runs an event loop.
        """
        _reject_in_loop(request)
        seconds = self.settings.timeout if request.timeout is None else request.timeout
        connect = min(seconds, CONNECT_SECONDS if len(self._replicas) > 1 else DEFAULT_TIMEOUT)
        # urllib3 would send parameters as a form when there is a body.
        query = f"?{urlencode(request.params, doseq=True)}" if request.params else ""
        failures: dict[str, BaseException] = {}
        pool = self._live_pool()
        for url in self._replicas.in_order():
            data, headers = encode(request)
            try:
                response = pool.request(
                    request.method,
                    url + request.path + query,
                    body=data,
                    headers={**self.settings.headers_for(url), **headers},
                    timeout=urllib3.Timeout(connect=connect, read=seconds),
                    preload_content=preload,
                    redirect=False,
                )
            except _BROKEN as exc:
                self._replicas.report_failure(url)
                if not _is_unsent(exc):
                    note_certificate(exc, url, self.settings)
                    raise unavailable(request, url, exc) from exc
                failures[url] = exc
            else:
                if response.status in AWAY:
                    self._replicas.report_failure(url)
                return url, response
        raise unreachable(failures) from list(failures.values())[-1]

    def request(self, request: HttpRequest) -> Any:
        """Like `HttpConnection.request`."""
        return self.answer(request).value

    def answer(self, request: HttpRequest) -> HttpAnswer:
        """Like `HttpConnection.answer`."""
        url, response = self._open(request, preload=True)
        return HttpAnswer(decode(response.status, response.data, url + request.path), response.headers)

    def send(self, request: HttpRequest) -> tuple[int, bytes]:
        """Like `HttpConnection.send`."""
        _, response = self._open(request, preload=True)
        return response.status, response.data

    @contextmanager
    def stream(self, request: HttpRequest) -> Iterator[Generator[bytes]]:
        """Like `HttpConnection.stream`."""
        url, response = self._open(request, preload=False)
        try:
            if response.status >= HTTPStatus.MULTIPLE_CHOICES:
                with translated(request, url, self._replicas, _BROKEN):
                    problem = response.read()
                raise from_problem(response.status, problem, url=url + request.path)
            yield self._lines(request, url, response)
        finally:
            # A stream that was left early cannot give its connection back to the pool.
            response.close()

    def _lines(self, request: HttpRequest, url: str, response: urllib3.BaseHTTPResponse) -> Generator[bytes]:
        rest = b""
        with translated(request, url, self._replicas, _BROKEN):
            while chunk := response.read1():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        if rest:
            yield rest

    def close(self) -> None:
        """Close all connections. Idempotent; a later request opens new ones."""
        live, self._pool = self._pool, None
        if live is not None:
            live[1].clear()


def _reject_in_loop(request: HttpRequest) -> None:
    """Reject a call that would block the event loop of this thread.

    Nothing else in the loop would continue, and the server that has to answer may run in it. IPython runs the
    cells of a notebook in a loop, where users know that a cell blocks.

    Raises:
        BlockingCallError: This thread runs an event loop.
    """
    asyncio = sys.modules.get("asyncio")
    try:
        if asyncio is None:
            return
        asyncio.get_running_loop()
    except RuntimeError:
        return
    if hasattr(builtins, "get_ipython"):
        return
    raise BlockingCallError(
        f"{request.method} {request.path} was not sent: a client without `await` would block the event loop"
        " that runs in this thread. Use the asynchronous client (`Client` instead of `SyncClient`), or call"
        " this one in a thread, with `await asyncio.to_thread(...)` or in a step that is a plain function"
    )
