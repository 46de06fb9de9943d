"""A small HTTP server for probes, in a thread, without a framework and without an event loop.

It answers while steps block the loop of its process, and costs a supervisor almost no memory. It reads the
first line of a request and the host, answers, and closes the connection.
"""

from __future__ import annotations

import ipaddress
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from llama_deploy.concurrency.forked_children import forget, keep_from_children
from llama_deploy.health import LIVE_PATH, READY_PATH, Checks, encoded, status_of
from llama_deploy.metric_texts import CONTENT_TYPE, METRICS_PATH

if TYPE_CHECKING:
    from llama_deploy.web.server_tls import ServerTls  # loads OpenSSL

logger = logging.getLogger(__name__)

_MAX_REQUEST_BYTES: Final = 8192
_MAX_CONNECTIONS: Final = 64
_MAX_SCRAPES: Final = 4
"""How many requests for metrics are answered at the same time."""
_SECONDS: Final = 5.0
"""How long a request and its answer may take together."""
_HEAD_END: Final = b"\r\n\r\n"
_SCRAPES: Final = (f"GET {METRICS_PATH} HTTP/1.".encode(), f"GET {METRICS_PATH}?".encode())
"""How a request for metrics begins."""
_PLAIN: Final = "text/plain; charset=utf-8"


@dataclass(slots=True, eq=False)
class _Connection:
    """One client."""

    socket: socket.socket
    until: float
    received: bytes = b""
    answer: memoryview | None = None
    """What is still to be sent. None: the request is not complete. Empty: the client is to close."""


@dataclass(slots=True, eq=False)
class HealthServer:
    """Answers probes from `start` until `close`.

    Args:
        live: The checks of `/health/live`.
        ready: The checks of `/health/ready`, and of `/health`. Both run in a thread, and must not wait.
        metrics: Returns the text of `/metrics`. It runs in a thread of its own for each request, and may wait
            for seconds. None: there are none.
        tls: The certificate. None: the server speaks plain HTTP.
    """

    live: Callable[[], Checks]
    ready: Callable[[], Checks]
    metrics: Callable[[], str] | None = None
    tls: ServerTls | None = None
    _scraping: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(_MAX_SCRAPES), init=False
    )
    _listener: socket.socket | None = field(default=None, init=False)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector, init=False)
    _connections: dict[socket.socket, _Connection] = field(default_factory=dict, init=False)

    def start(self, host: str, port: int) -> int:
        """Listen, and answer in a daemon thread; return the port.

        Args:
            host: The address to bind.
            port: 0: the system chooses one.

        Raises:
            OSError: The address cannot be bound.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_MAX_CONNECTIONS)
        listener.setblocking(False)
        keep_from_children(listener.fileno())
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)
        threading.Thread(target=self._run, args=(listener,), name="health", daemon=True).start()
        return int(listener.getsockname()[1])

    def close(self) -> None:
        """Stop listening. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            forget(listener.fileno())
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes it

    def _run(self, listener: socket.socket) -> None:
        while self._listener is not None:
            now = time.monotonic()
            wait = min((each.until for each in self._connections.values()), default=now + 60.0) - now
            for key, _ in self._selector.select(max(0.0, wait)):
                if key.fileobj is listener:
                    self._accept(listener)
                elif (connection := self._connections.get(key.fileobj)) is not None:  # type: ignore[call-overload]
                    self._serve(connection)
            for connection in list(self._connections.values()):
                if time.monotonic() >= connection.until:
                    self._drop(connection)
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._selector.close()
        listener.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError as exc:
            if self._listener is not None and not isinstance(exc, BlockingIOError):
                logger.warning("a probe was not accepted: %s", exc, extra={"action": "probe_refused"})
                time.sleep(0.1)  # there may be no file descriptors left
            return
        client.setblocking(False)
        if self.tls is not None:
            try:
                client = self.tls.wrap(client)
            except OSError:  # it has gone
                client.close()
                return
        if len(self._connections) >= _MAX_CONNECTIONS:
            self._drop(next(iter(self._connections.values())))  # the one that has taken longest
        self._connections[client] = _Connection(client, time.monotonic() + _SECONDS)
        self._selector.register(client, selectors.EVENT_READ)

    def _serve(self, connection: _Connection) -> None:
        """Go on with a connection that is ready."""
        try:
            if connection.answer is None:
                self._read(connection)
            elif not connection.answer:
                self._read_on(connection)
            if connection.answer:
                connection.answer = connection.answer[connection.socket.send(connection.answer) :]
                if not connection.answer:
                    connection.socket.shutdown(socket.SHUT_WR)
                    self._selector.modify(connection.socket, selectors.EVENT_READ)
        except BlockingIOError:
            pass
        except OSError as exc:
            if self.tls is None or not self.tls.is_waiting(exc):
                self._drop(connection)

    def _read(self, connection: _Connection) -> None:
        data = connection.socket.recv(_MAX_REQUEST_BYTES)
        connection.received += data
        if _HEAD_END in connection.received and self._is_scrape(connection.received):
            self._scrape(connection)
        elif _HEAD_END in connection.received:
            connection.answer = memoryview(self._answer(connection.received))
        elif len(connection.received) >= _MAX_REQUEST_BYTES:
            connection.answer = memoryview(
                _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b"too large\n")
            )
        elif not data:
            self._drop(connection)
        if connection.answer is not None:
            self._selector.modify(connection.socket, selectors.EVENT_WRITE)

    def _is_scrape(self, request: bytes) -> bool:
        return self.metrics is not None and request.startswith(_SCRAPES)

    def _scrape(self, connection: _Connection) -> None:
        """Let a thread answer, which may wait for the children, or tell why not."""
        headers = connection.received.partition(_HEAD_END)[0].decode("latin-1").split("\r\n")[1:]
        if not _is_trusted(headers):
            refused = b"use an IP address or localhost as the host\n"
            connection.answer = memoryview(_response(HTTPStatus.MISDIRECTED_REQUEST, refused))
        elif not self._scraping.acquire(blocking=False):
            busy = b"too many requests for metrics\n"
            connection.answer = memoryview(_response(HTTPStatus.SERVICE_UNAVAILABLE, busy))
        else:
            self._connections.pop(connection.socket)
            self._selector.unregister(connection.socket)
            threading.Thread(target=self._answer_scrape, args=(connection.socket,), daemon=True).start()

    def _answer_scrape(self, client: socket.socket) -> None:
        try:
            with client, suppress(OSError):
                text = b"" if self.metrics is None else self.metrics().encode()
                client.settimeout(_SECONDS)
                client.sendall(_response(HTTPStatus.OK, text, media_type=CONTENT_TYPE))
                client.shutdown(socket.SHUT_WR)
                while client.recv(_MAX_REQUEST_BYTES):
                    pass  # closing before the client has read the answer could take it away
        finally:
            self._scraping.release()

    def _read_on(self, connection: _Connection) -> None:
        """Drop what a client still sends: closing before it has read the answer could take that away."""
        if not connection.socket.recv(_MAX_REQUEST_BYTES):
            self._drop(connection)

    def _answer(self, request: bytes) -> bytes:
        line, *headers = request.partition(_HEAD_END)[0].decode("latin-1").split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):  # noqa: PLR2004 - method, target, version
            return _response(HTTPStatus.BAD_REQUEST, b"this is not a request of HTTP/1.1\n")
        method, path = words[0], words[1].partition("?")[0]
        checks = {LIVE_PATH: self.live, READY_PATH: self.ready, "/health": self.ready}.get(path)
        if checks is None:
            has_metrics = "" if self.metrics is None else f", {METRICS_PATH}"
            text = f"this port has {LIVE_PATH} and {READY_PATH}{has_metrics} only\n".encode()
            return _response(HTTPStatus.NOT_FOUND, text, is_head=method == "HEAD")
        if method not in ("GET", "HEAD"):
            return _response(
                HTTPStatus.METHOD_NOT_ALLOWED, b"use GET or HEAD\n", further={"Allow": "GET, HEAD"}
            )
        outcome = checks()
        return _response(
            status_of(outcome),
            encoded(outcome, brief=not _is_trusted(headers)),
            media_type="application/json",
            is_head=method == "HEAD",
        )

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop(connection.socket, None)
        with suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)
        connection.socket.close()


def _response(
    status: HTTPStatus,
    body: bytes,
    *,
    media_type: str = _PLAIN,
    is_head: bool = False,
    further: Mapping[str, str] | None = None,
) -> bytes:
    headers = {
        "Content-Type": media_type,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "Connection": "close",
        **(further or {}),
    }
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        *(f"{key}: {value}" for key, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + _HEAD_END + (b"" if is_head else body)


def _is_trusted(headers: list[str]) -> bool:
    """Whether a request names an address or `localhost` as its host, as `TrustedHosts` does.

    Otherwise a page whose own name resolves to this machine may have sent it, and learns no reasons.
    """
    hosts = [
        value.strip()
        for name, _, value in (line.partition(":") for line in headers)
        if name.lower() == "host"
    ]
    if len(hosts) != 1:
        return not hosts
    host = hosts[0].rpartition(":")[0] if hosts[0].rpartition(":")[2].isdecimal() else hosts[0]
    if host.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
