"""HTTP connections for asyncio. `sync_http_connection` has the same for threads.

Connections are kept alive. They raise the errors of `llama_deploy.errors`: an answer of 300 or more
becomes the error that its problem details name, a broken connection `UnavailableError`. Redirects are not
followed, because a POST would arrive as a GET: they are errors too.

A request that could not be sent, because no connection was opened, goes to the next replica of the server
at once. One that may have arrived is not sent again: it raises `UnavailableError`, and the caller decides.
The next request then goes to the next replica.
"""

from __future__ import annotations

import asyncio
import io
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import aiohttp

from llama_deploy.web.client_tls import ClientTls
from llama_deploy.web.connection_settings import Address, ConnectionSettings
from llama_deploy.web.dead_peers import new_socket
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

_LARGE_BODY_BYTES: Final = 512 * 1024


def _body(data: bytes | None) -> bytes | io.BytesIO | None:
    """Return what aiohttp is to send: a large body in pieces, so that the event loop is not blocked."""
    return io.BytesIO(data) if data is not None and len(data) > _LARGE_BODY_BYTES else data


_BROKEN: Final = (aiohttp.ClientError, TimeoutError, OSError)
"""What the driver raises."""
_UNSENT: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ConnectionTimeoutError,
)
"""What it raises when no connection was opened, so that the request has certainly not been sent."""


def _abandon(session: aiohttp.ClientSession) -> None:
    """Close the sockets of a session that was not closed, without a loop."""
    connector = session.connector
    if connector is not None and not connector.closed:
        connector._close()  # noqa: SLF001 - the public form is a coroutine, and its loop may be gone


class HttpConnection:
    """A pool of kept-alive connections for asyncio. `close` it.

    It may be created outside of a loop and used in several, one after the other. Files that the settings name
    are read with the first request in a loop.

    Args:
        address: The URL of the server, such as `http://127.0.0.1:8000`, those of its replicas, or settings.
        options: Further arguments of `aiohttp.ClientSession`.

    Raises:
        ConfigError: The address or a setting is malformed.
    """

    def __init__(self, address: Address, *, options: Mapping[str, Any] | None = None) -> None:
        self.settings = ConnectionSettings.of(address)
        self._replicas = Replicas(self.settings.urls)
        self._tls = ClientTls.of(self.settings)
        self._options = dict(options or {})
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._abandon: weakref.finalize[Any, Any] | None = None

    @property
    def base_url(self) -> str:
        """The URL of the replica that the next request goes to."""
        return self._replicas.current

    def _live_session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not loop:
            if self._abandon is not None:
                self._abandon()
            # Every long poll occupies a connection, so the pool has no limit; callers limit themselves.
            connector = aiohttp.TCPConnector(limit=0, socket_factory=new_socket)
            self._session = aiohttp.ClientSession(connector=connector, **self._options)
            self._loop = loop
            self._abandon = weakref.finalize(self, _abandon, self._session)
        return self._session

    async def _open(
        self, request: HttpRequest, limits: aiohttp.ClientTimeout
    ) -> tuple[str, aiohttp.ClientResponse]:
        """Send a request to the first replica that can be reached; return its URL and its response."""
        failures: dict[str, BaseException] = {}
        for url in self._replicas.in_order():
            data, headers = encode(request)
            try:
                response = await self._live_session().request(
                    request.method,
                    url + request.path,
                    params=dict(request.params),
                    data=_body(data),
                    headers={**self.settings.headers_for(url), **headers},
                    timeout=limits,
                    allow_redirects=False,
                    ssl=self._tls.current() or True,
                )
            except _BROKEN as exc:
                self._replicas.report_failure(url)
                if not isinstance(exc, _UNSENT):
                    note_certificate(exc, url, self.settings)
                    raise unavailable(request, url, exc) from exc
                failures[url] = exc
            else:
                if response.status in AWAY:
                    self._replicas.report_failure(url)
                return url, response
        raise unreachable(failures) from list(failures.values())[-1]

    def _seconds(self, request: HttpRequest) -> tuple[float, float | None]:
        """Return the seconds for an answer, and those for opening a connection."""
        seconds = self.settings.timeout if request.timeout is None else request.timeout
        return seconds, min(seconds, CONNECT_SECONDS) if len(self._replicas) > 1 else None

    async def _exchange(self, request: HttpRequest) -> tuple[str, int, Mapping[str, str], bytes]:
        seconds, connect = self._seconds(request)
        url, response = await self._open(request, aiohttp.ClientTimeout(total=seconds, connect=connect))
        with translated(request, url, self._replicas, _BROKEN):
            async with response:
                return url, response.status, response.headers, await response.read()

    async def request(self, request: HttpRequest) -> Any:
        """Send a request and return its answer as decoded JSON, None if it has no body.

        Raises:
            LlamaDeployError: What the answer's problem details name.
            UnavailableError: No connection, or no answer in time.
            ConfigError: A certificate or a key of the settings cannot be used.
        """
        return (await self.answer(request)).value

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Like `request`, with the headers of the answer."""
        url, status, headers, body = await self._exchange(request)
        return HttpAnswer(decode(status, body, url + request.path), headers)

    async def send(self, request: HttpRequest) -> tuple[int, bytes]:
        """Send a request and return status and body of its answer.

        Raises:
            UnavailableError: No connection, or no answer in time.
        """
        _, status, _, body = await self._exchange(request)
        return status, body

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[AsyncGenerator[bytes]]:
        """Send a request and yield the lines of its answer as they come, without their ends.

        Raises:
            LlamaDeployError: What the answer's problem details name.
            UnavailableError: No connection, or it broke, or nothing came for `timeout` seconds.
        """
        seconds, connect = self._seconds(request)
        limits = aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=seconds, sock_read=seconds)
        url, response = await self._open(request, limits)
        # Only our own reading is translated: the body of the `async with` keeps its errors.
        async with response:
            if response.status >= HTTPStatus.MULTIPLE_CHOICES:
                with translated(request, url, self._replicas, _BROKEN):
                    problem = await response.read()
                raise from_problem(response.status, problem, url=url + request.path)
            yield self._lines(request, url, response)

    async def _lines(
        self, request: HttpRequest, url: str, response: aiohttp.ClientResponse
    ) -> AsyncGenerator[bytes]:
        rest = b""
        with translated(request, url, self._replicas, _BROKEN):
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line
        if rest:
            yield rest

    async def close(self) -> None:
        """Close all connections. Idempotent; a later request opens new ones."""
        session, self._session = self._session, None
        if session is None:
            return
        if self._loop is asyncio.get_running_loop():
            await session.close()
        if self._abandon is not None:
            self._abandon()
