"""HTTP connections to a server of ours, one for asyncio and one for threads, with the same surface.

Both keep their connections alive, and raise the errors of `llama_deploy.errors`: an answer of 300 or more
becomes the error that its problem details name, a broken connection `UnavailableError`. Redirections are not
followed, as a POST would arrive as a GET: they are errors too.
"""

from __future__ import annotations

import asyncio
import io
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
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

JSON_HEADERS: Final = {"Content-Type": "application/json"}
"""For a request whose `content` is JSON already."""
_LARGE_BODY_BYTES: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request, before any I/O."""

    method: str
    path: str
    """Relative to the connection's base URL; begins with a slash; already quoted."""
    params: Mapping[str, str | int | float] = field(default_factory=dict)
    json: Any = None
    """The body, as JSON values or pydantic models. None: no body."""
    content: bytes | None = None
    """The body as it stands, instead of `json`; `headers` should tell its type."""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = DEFAULT_TIMEOUT
    """Seconds until the answer is complete; for a stream, between two pieces of it."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What a server answered to a request that it did not refuse."""

    value: Any
    """The decoded JSON, None if there was no body."""
    headers: Mapping[str, str]
    """Their names may be given in any case."""


def _encode(request: HttpRequest) -> tuple[bytes | None, dict[str, str]]:
    if request.json is None:
        return request.content, dict(request.headers)
    return pydantic_core.to_json(request.json), {**JSON_HEADERS, **request.headers}


def _body(data: bytes | None) -> bytes | io.BytesIO | None:
    """Return what aiohttp is to send: a large body in pieces, so that the loop is not held up."""
    return io.BytesIO(data) if data is not None and len(data) > _LARGE_BODY_BYTES else data


def _decode(status: int, body: bytes, url: str) -> Any:
    if status >= HTTPStatus.MULTIPLE_CHOICES:
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


@contextmanager
def _translated(request: HttpRequest, base_url: str) -> Iterator[None]:
    """Raise what the drivers of either connection raise as `UnavailableError`."""
    try:
        yield
    except (aiohttp.ClientError, urllib3.exceptions.HTTPError, TimeoutError, OSError) as exc:
        raise _unavailable(request, base_url, exc) from exc


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

    def _open(
        self, request: HttpRequest, timeout: aiohttp.ClientTimeout
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        data, headers = _encode(request)
        return self._live_session().request(
            request.method,
            self.base_url + request.path,
            params=dict(request.params),
            data=_body(data),
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
        )

    async def _exchange(self, request: HttpRequest) -> tuple[int, Mapping[str, str], bytes]:
        with _translated(request, self.base_url):
            async with self._open(request, aiohttp.ClientTimeout(total=request.timeout)) as response:
                return response.status, response.headers, await response.read()

    async def request(self, request: HttpRequest) -> Any:
        """Send a request and return its answer as decoded JSON, None if it has no body.

        Raises:
            LlamaDeployError: What the answer's problem details name.
            UnavailableError: No connection, or no answer in time.
        """
        return (await self.answer(request)).value

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Like `request`, with the headers of the answer."""
        status, headers, body = await self._exchange(request)
        return HttpAnswer(_decode(status, body, self.base_url + request.path), headers)

    async def send(self, request: HttpRequest) -> tuple[int, bytes]:
        """Send a request and return status and body of its answer.

        Raises:
            UnavailableError: No connection, or no answer in time.
        """
        status, _, body = await self._exchange(request)
        return status, body

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[AsyncGenerator[bytes]]:
        """Send a request and yield the lines of its answer as they come, without their ends.

        Raises:
            LlamaDeployError: What the answer's problem details name.
            UnavailableError: No connection, or it broke, or nothing came for `timeout` seconds.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=request.timeout, sock_read=request.timeout)
        async with AsyncExitStack() as stack:
            # Only our own reading is translated: the body of the `async with` keeps its errors.
            with _translated(request, self.base_url):
                response = await stack.enter_async_context(self._open(request, timeout))
                refusal = await response.read() if response.status >= HTTPStatus.MULTIPLE_CHOICES else None
            if refusal is not None:
                raise from_problem(response.status, refusal, url=self.base_url + request.path)
            yield self._lines(request, response)

    async def _lines(self, request: HttpRequest, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        rest = b""
        with _translated(request, self.base_url):
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
    """A pool of kept-alive connections for threads. `close` it. The same surface without await.

    Args:
        base_url: Such as `http://127.0.0.1:8000`.
        verify_tls: False accepts any certificate.
        pool_size: How many connections are kept; more threads get one for each request.
    """

    def __init__(self, base_url: str, *, verify_tls: bool = True, pool_size: int = 256) -> None:
        self.base_url = base_url.rstrip("/")
        self._pool = urllib3.PoolManager(
            num_pools=2,
            maxsize=pool_size,
            retries=False,
            cert_reqs="CERT_REQUIRED" if verify_tls else "CERT_NONE",
        )

    def _open(self, request: HttpRequest, *, preload: bool) -> urllib3.BaseHTTPResponse:
        data, headers = _encode(request)
        # urllib3 would send parameters as a form when there is a body.
        query = f"?{urlencode(request.params)}" if request.params else ""
        with _translated(request, self.base_url):
            return self._pool.request(
                request.method,
                self.base_url + request.path + query,
                body=data,
                headers=headers,
                timeout=urllib3.Timeout(connect=min(request.timeout, DEFAULT_TIMEOUT), read=request.timeout),
                preload_content=preload,
                redirect=False,
            )

    def request(self, request: HttpRequest) -> Any:
        """Like `HttpConnection.request`."""
        return self.answer(request).value

    def answer(self, request: HttpRequest) -> HttpAnswer:
        """Like `HttpConnection.answer`."""
        response = self._open(request, preload=True)
        value = _decode(response.status, response.data, self.base_url + request.path)
        return HttpAnswer(value, response.headers)

    def send(self, request: HttpRequest) -> tuple[int, bytes]:
        """Like `HttpConnection.send`."""
        response = self._open(request, preload=True)
        return response.status, response.data

    @contextmanager
    def stream(self, request: HttpRequest) -> Iterator[Generator[bytes]]:
        """Like `HttpConnection.stream`."""
        response = self._open(request, preload=False)
        try:
            if response.status >= HTTPStatus.MULTIPLE_CHOICES:
                with _translated(request, self.base_url):
                    refusal = response.read()
                raise from_problem(response.status, refusal, url=self.base_url + request.path)
            yield self._lines(request, response)
        finally:
            # A stream that was left early cannot give its connection back to the pool.
            response.close()

    def _lines(self, request: HttpRequest, response: urllib3.BaseHTTPResponse) -> Generator[bytes]:
        rest = b""
        with _translated(request, self.base_url):
            while chunk := response.read1():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        if rest:
            yield rest

    def close(self) -> None:
        """Close all connections. Idempotent; a later request opens new ones."""
        self._pool.clear()
