"""HTTP connections to a server of ours, one for asyncio and one for threads, with the same surface.

Both keep their connections alive, and raise the errors of `llama_deploy.errors`: an answer of 400 or more
becomes the error that its problem details name, a broken connection `UnavailableError`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import pydantic_core
import urllib3

from llama_deploy.errors import InternalServerError, UnavailableError
from llama_deploy.web.problems import from_problem

DEFAULT_TIMEOUT: Final = 30.0
"""Seconds for a request, beyond what the server was asked to wait."""

_JSON_HEADERS: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request, before any I/O."""

    method: str
    path: str
    """Relative to the connection's base URL; begins with a slash; already quoted."""
    params: Mapping[str, str | int | float] = field(default_factory=dict)
    json: Any = None
    """The body, as JSON values or pydantic models. None: no body."""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = DEFAULT_TIMEOUT
    """Seconds until the answer is complete; for a stream, between two pieces of it."""


def _encode(request: HttpRequest) -> tuple[bytes | None, dict[str, str]]:
    if request.json is None:
        return None, dict(request.headers)
    return pydantic_core.to_json(request.json), {**_JSON_HEADERS, **request.headers}


def _decode(status: int, body: bytes, url: str) -> Any:
    if status >= HTTPStatus.BAD_REQUEST:
        raise from_problem(status, body, url=url)
    if not body:
        return None
    try:
        return pydantic_core.from_json(body)
    except ValueError as exc:
        raise InternalServerError(f"{url} did not answer with JSON: {body[:80]!r}") from exc


def _unavailable(request: HttpRequest, base_url: str, exc: BaseException) -> UnavailableError:
    reason = str(exc) or type(exc).__name__
    return UnavailableError(f"{request.method} {base_url}{request.path}: no answer: {reason}")


def _abandon(session: aiohttp.ClientSession) -> None:
    """Close the sockets of a session that nobody closed, without a loop."""
    connector = session.connector
    if connector is not None and not connector.closed:
        connector._close()  # noqa: SLF001 - the public form is a coroutine, and its loop may be gone


class HttpConnection:
    """A pool of kept-alive connections for asyncio. `close` it.

    It may be created outside of a loop and used in several, one after the other.

    Args:
        base_url: Such as `http://127.0.0.1:8000`.
        verify_tls: False accepts any certificate.
        options: Further arguments of `aiohttp.ClientSession`.
    """

    def __init__(
        self, base_url: str, *, verify_tls: bool = True, options: Mapping[str, Any] | None = None
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._verify_tls = verify_tls
        self._options = dict(options or {})
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._abandon: weakref.finalize[Any, Any] | None = None

    def _live_session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not loop:
            if self._abandon is not None:
                self._abandon()
            # Long-polls hold a connection each, so the pool has no limit of its own: callers have theirs.
            connector = aiohttp.TCPConnector(limit=0, ssl=self._verify_tls)
            self._session = aiohttp.ClientSession(connector=connector, **self._options)
            self._loop = loop
            self._abandon = weakref.finalize(self, _abandon, self._session)
        return self._session

    async def request(self, request: HttpRequest) -> Any:
        """Send a request and return its answer as decoded JSON, None if it has no body.

        Raises:
            LlamaDeployError: What the answer's problem details name.
            UnavailableError: No connection, or no answer in time.
        """
        status, body = await self.send(request)
        return _decode(status, body, self.base_url + request.path)

    async def send(self, request: HttpRequest) -> tuple[int, bytes]:
        """Send a request and return status and body of its answer.

        Raises:
            UnavailableError: No connection, or no answer in time.
        """
        data, headers = _encode(request)
        try:
            async with self._live_session().request(
                request.method,
                self.base_url + request.path,
                params=dict(request.params),
                data=data,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=request.timeout),
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise _unavailable(request, self.base_url, exc) from exc

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send a request and yield the lines of its answer as they come, without their ends.

        Raises:
            LlamaDeployError: What the answer's problem details name.
            UnavailableError: No connection, or it broke, or nothing came for `timeout` seconds.
        """
        data, headers = _encode(request)
        try:
            async with self._live_session().request(
                request.method,
                self.base_url + request.path,
                params=dict(request.params),
                data=data,
                headers=headers,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=request.timeout, sock_read=request.timeout
                ),
            ) as response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    body = await response.read()
                    raise from_problem(response.status, body, url=self.base_url + request.path)
                yield self._lines(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise _unavailable(request, self.base_url, exc) from exc

    @staticmethod
    async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        rest = b""
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


class SyncHttpConnection:
    """A pool of kept-alive connections for threads. `close` it. The same surface without await."""

    def __init__(self, base_url: str, *, verify_tls: bool = True, pool_size: int = 64) -> None:
        self.base_url = base_url.rstrip("/")
        self._pool = urllib3.PoolManager(
            num_pools=2,
            maxsize=pool_size,
            retries=False,
            cert_reqs="CERT_REQUIRED" if verify_tls else "CERT_NONE",
        )

    def _open(self, request: HttpRequest, *, preload: bool) -> urllib3.BaseHTTPResponse:
        data, headers = _encode(request)
        try:
            return self._pool.request(
                request.method,
                self.base_url + request.path,
                fields=None,
                body=data,
                headers=headers,
                timeout=urllib3.Timeout(connect=min(request.timeout, DEFAULT_TIMEOUT), read=request.timeout),
                preload_content=preload,
            )
        except urllib3.exceptions.HTTPError as exc:
            raise _unavailable(request, self.base_url, exc) from exc

    def request(self, request: HttpRequest) -> Any:
        """Like `HttpConnection.request`."""
        status, body = self.send(request)
        return _decode(status, body, self.base_url + request.path)

    def send(self, request: HttpRequest) -> tuple[int, bytes]:
        """Like `HttpConnection.send`."""
        response = self._open(_with_query(request), preload=True)
        return response.status, response.data

    @contextmanager
    def stream(self, request: HttpRequest) -> Iterator[Iterator[bytes]]:
        """Like `HttpConnection.stream`."""
        response = self._open(_with_query(request), preload=False)
        try:
            if response.status >= HTTPStatus.BAD_REQUEST:
                raise from_problem(response.status, response.read(), url=self.base_url + request.path)
            yield self._lines(response)
        except urllib3.exceptions.HTTPError as exc:
            raise _unavailable(request, self.base_url, exc) from exc
        finally:
            # A stream that was left early cannot give its connection back to the pool.
            response.close()

    @staticmethod
    def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        rest = b""
        while chunk := response.read1():
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
        if rest:
            yield rest

    def close(self) -> None:
        """Close all connections. Idempotent; a later request opens new ones."""
        self._pool.clear()


def _with_query(request: HttpRequest) -> HttpRequest:
    """Put the parameters into the path: urllib3 would send them as a form when there is a body."""
    if not request.params:
        return request
    query = urlencode(request.params)
    return HttpRequest(
        method=request.method,
        path=f"{request.path}?{query}",
        json=request.json,
        headers=request.headers,
        timeout=request.timeout,
    )
