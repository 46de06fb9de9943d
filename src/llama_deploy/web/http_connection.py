"""HTTP connections, one for asyncio and one for threads, with the same interface.

Both keep their connections alive, and raise the errors of `llama_deploy.errors`: an answer of 300 or more
becomes the error that its problem details name, a broken connection `UnavailableError`. Redirects are not
followed, because a POST would arrive as a GET: they are errors too.

A request that could not be sent, because no connection was opened, goes to the next replica of the server
at once. One that may have arrived is not sent again: it raises `UnavailableError`, and the caller decides.
The next request then goes to the next replica.
"""

from __future__ import annotations

import asyncio
import builtins
import io
import os
import ssl
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import aiohttp
import pydantic_core
import urllib3
from pydantic import TypeAdapter, ValidationError

from llama_deploy.errors import BlockingCallError, InternalServerError, UnavailableError
from llama_deploy.types.validation import describe_validation_error
from llama_deploy.web.connection_settings import DEFAULT_TIMEOUT, Address, ConnectionSettings
from llama_deploy.web.problems import from_problem
from llama_deploy.web.replicas import Replicas
from llama_deploy.web.shown_url import shown_url

T = TypeVar("T")

JSON_HEADERS: Final = {"Content-Type": "application/json"}
"""For a request whose `content` is JSON already."""
_LARGE_BODY_BYTES: Final = 512 * 1024
_CONNECT_SECONDS: Final = 5.0
"""How long to wait for a connection when another replica can be tried."""
_AWAY: Final = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
"""Answers after which the next request goes to another replica."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request, before any I/O."""

    method: str
    path: str
    """Relative to the connection's base URL; starts with a slash; already quoted."""
    params: Mapping[str, str | int | float] = field(default_factory=dict)
    json: Any = None
    """The body, as JSON values or pydantic models. None: no body."""
    content: bytes | None = None
    """The encoded body, instead of `json`; `headers` must name its type."""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    """Seconds until the answer is complete; for a stream, between two parts of it. None: as the connection's
    settings say."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The answer of a server to a request that has succeeded."""

    value: Any
    """The decoded JSON, None if there was no body."""
    headers: Mapping[str, str]
    """Their names may be given in any case."""


as_object: Final = TypeAdapter(dict[str, Any]).validate_python
"""Returns decoded JSON as an object."""


def read_answer(value: Any, returns: Callable[[Any], T], *, source: str) -> T:
    """Return a server's decoded JSON as the expected type.

    Args:
        value: The decoded JSON.
        returns: Validates it; raises `pydantic.ValidationError`.
        source: The URL or the path of the request, for the error.

    Raises:
        InternalServerError: The JSON does not match the expected type.
    """
    try:
        return returns(value)
    except ValidationError as exc:
        raise InternalServerError(
            f"the response to {source} has an unexpected form: {describe_validation_error(exc)}; "
            "check that the URL leads to a llama_deploy server of a compatible version"
        ) from exc


def _encode(request: HttpRequest) -> tuple[bytes | None, dict[str, str]]:
    if request.json is None:
        return request.content, dict(request.headers)
    return pydantic_core.to_json(request.json), {**JSON_HEADERS, **request.headers}


def _body(data: bytes | None) -> bytes | io.BytesIO | None:
    """Return what aiohttp is to send: a large body in pieces, so that the event loop is not blocked."""
    return io.BytesIO(data) if data is not None and len(data) > _LARGE_BODY_BYTES else data


def _decode(status: int, body: bytes, url: str) -> Any:
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        raise from_problem(status, body, url=url)
    if not body:
        return None
    try:
        return pydantic_core.from_json(body)
    except ValueError as exc:
        raise InternalServerError(f"{shown_url(url)} did not answer with JSON: {body[:80]!r}") from exc


def _unavailable(request: HttpRequest, url: str, exc: BaseException) -> UnavailableError:
    return UnavailableError(f"{request.method} {shown_url(url + request.path)}: no answer: {reason_of(exc)}")


def _unreachable(failures: Mapping[str, BaseException]) -> UnavailableError:
    """Return the error for a request for which no replica opened a connection."""
    reasons = "; ".join(f"{shown_url(url)}: {reason_of(exc)}" for url, exc in failures.items())
    return UnavailableError(
        f"cannot connect to {reasons}" if len(failures) == 1 else f"no replica answers: {reasons}"
    )


def reason_of(exc: BaseException) -> str:
    """Return why a connection failed, in the words of the operating system if it has some."""
    cause = exc.__cause__ if isinstance(exc.__cause__, OSError) else exc
    words = None
    if isinstance(cause, OSError):
        # Errors of TLS have numbers of their own, and those of DNS are negative.
        is_of_system = bool(cause.errno and cause.errno > 0) and not isinstance(cause, ssl.SSLError)
        words = os.strerror(cause.errno or 0) if is_of_system else cause.strerror
    return words or str(exc) or type(exc).__name__


_Broken: Final = (aiohttp.ClientError, urllib3.exceptions.HTTPError, TimeoutError, OSError)
"""What the drivers of both connections raise."""


def _is_unsent(exc: BaseException) -> bool:
    """Whether a request has certainly not been sent, because no connection was opened."""
    if isinstance(exc, urllib3.exceptions.SSLError):
        # Other errors of TLS may come later; a certificate is verified before anything is sent.
        return bool(exc.args) and isinstance(exc.args[0], ssl.SSLCertVerificationError)
    return isinstance(
        exc,
        aiohttp.ClientConnectorError
        | aiohttp.ClientConnectorCertificateError
        | aiohttp.ConnectionTimeoutError
        | urllib3.exceptions.NewConnectionError
        | urllib3.exceptions.ConnectTimeoutError,
    )


@contextmanager
def _translated(request: HttpRequest, url: str, replicas: Replicas) -> Iterator[None]:
    """Raise an error of the drivers as `UnavailableError`, and move on to the next replica."""
    try:
        yield
    except _Broken as exc:
        replicas.report_failure(url)
        raise _unavailable(request, url, exc) from exc


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
            context = self.settings.tls_context()
            # Every long poll occupies a connection, so the pool has no limit; callers limit themselves.
            connector = aiohttp.TCPConnector(limit=0, ssl=True if context is None else context)
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
            data, headers = _encode(request)
            try:
                response = await self._live_session().request(
                    request.method,
                    url + request.path,
                    params=dict(request.params),
                    data=_body(data),
                    headers={**self.settings.headers_for(url), **headers},
                    timeout=limits,
                    allow_redirects=False,
                )
            except _Broken as exc:
                self._replicas.report_failure(url)
                if not _is_unsent(exc):
                    raise _unavailable(request, url, exc) from exc
                failures[url] = exc
            else:
                if response.status in _AWAY:
                    self._replicas.report_failure(url)
                return url, response
        raise _unreachable(failures) from list(failures.values())[-1]

    def _seconds(self, request: HttpRequest) -> tuple[float, float | None]:
        """Return the seconds for an answer, and those for opening a connection."""
        seconds = self.settings.timeout if request.timeout is None else request.timeout
        return seconds, min(seconds, _CONNECT_SECONDS) if len(self._replicas) > 1 else None

    async def _exchange(self, request: HttpRequest) -> tuple[str, int, Mapping[str, str], bytes]:
        seconds, connect = self._seconds(request)
        url, response = await self._open(request, aiohttp.ClientTimeout(total=seconds, connect=connect))
        with _translated(request, url, self._replicas):
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
        return HttpAnswer(_decode(status, body, url + request.path), headers)

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
                with _translated(request, url, self._replicas):
                    problem = await response.read()
                raise from_problem(response.status, problem, url=url + request.path)
            yield self._lines(request, url, response)

    async def _lines(
        self, request: HttpRequest, url: str, response: aiohttp.ClientResponse
    ) -> AsyncGenerator[bytes]:
        rest = b""
        with _translated(request, url, self._replicas):
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

    @property
    def base_url(self) -> str:
        """The URL of the replica that the next request goes to."""
        return self._replicas.current

    @cached_property
    def _pool(self) -> urllib3.PoolManager:
        return urllib3.PoolManager(
            num_pools=len(self._replicas),
            maxsize=self._pool_size,
            retries=False,
            ssl_context=self.settings.tls_context(),
        )

    def _open(self, request: HttpRequest, *, preload: bool) -> tuple[str, urllib3.BaseHTTPResponse]:
        """Send a request to the first replica that can be reached; return its URL and its response.

        Raises:
            BlockingCallError: This thread runs an event loop.
        """
        _reject_in_loop(request)
        seconds = self.settings.timeout if request.timeout is None else request.timeout
        connect = min(seconds, _CONNECT_SECONDS if len(self._replicas) > 1 else DEFAULT_TIMEOUT)
        # urllib3 would send parameters as a form when there is a body.
        query = f"?{urlencode(request.params)}" if request.params else ""
        failures: dict[str, BaseException] = {}
        for url in self._replicas.in_order():
            data, headers = _encode(request)
            try:
                response = self._pool.request(
                    request.method,
                    url + request.path + query,
                    body=data,
                    headers={**self.settings.headers_for(url), **headers},
                    timeout=urllib3.Timeout(connect=connect, read=seconds),
                    preload_content=preload,
                    redirect=False,
                )
            except _Broken as exc:
                self._replicas.report_failure(url)
                if not _is_unsent(exc):
                    raise _unavailable(request, url, exc) from exc
                failures[url] = exc
            else:
                if response.status in _AWAY:
                    self._replicas.report_failure(url)
                return url, response
        raise _unreachable(failures) from list(failures.values())[-1]

    def request(self, request: HttpRequest) -> Any:
        """Like `HttpConnection.request`."""
        return self.answer(request).value

    def answer(self, request: HttpRequest) -> HttpAnswer:
        """Like `HttpConnection.answer`."""
        url, response = self._open(request, preload=True)
        return HttpAnswer(_decode(response.status, response.data, url + request.path), response.headers)

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
                with _translated(request, url, self._replicas):
                    problem = response.read()
                raise from_problem(response.status, problem, url=url + request.path)
            yield self._lines(request, url, response)
        finally:
            # A stream that was left early cannot give its connection back to the pool.
            response.close()

    def _lines(self, request: HttpRequest, url: str, response: urllib3.BaseHTTPResponse) -> Generator[bytes]:
        rest = b""
        with _translated(request, url, self._replicas):
            while chunk := response.read1():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        if rest:
            yield rest

    def close(self) -> None:
        """Close all connections. Idempotent; a later request opens new ones."""
        pool = vars(self).pop("_pool", None)
        if pool is not None:
            pool.clear()


def _reject_in_loop(request: HttpRequest) -> None:
    """Reject a call that would block the event loop of this thread.

    Nothing else in the loop would continue, and the server that has to answer may run in it. IPython runs the
    cells of a notebook in a loop, where users know that a cell blocks.

    Raises:
        BlockingCallError: This thread runs an event loop.
    """
    try:
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
