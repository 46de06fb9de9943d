"""HTTP/1.1 of uvicorn, with limits for clients that begin a request and do not finish it.

It also limits the head of a request: httptools keeps a header of any length, and uvicorn any number of them.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llama_deploy.web.answer_writer import AnswerWriter
from llama_deploy.web.certificate_required import certificate_required
from llama_deploy.web.connection_limit import DEFAULT_MAX_CONNECTIONS, ConnectionLimit
from llama_deploy.web.problems import MEDIA_TYPE, TYPE_PREFIX

PATIENCE_SECONDS: Final = 30.0
"""How long a client may take for the headers of a request, and be silent within its body."""
_MAX_BODY_TIMES: Final = 10
"""How many times as long a whole request may take."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""How large the address of a request may be together with its headers and trailers.

Each header counts 32 bytes more than its name and value, as in RFC 9113, 6.5.2.
"""
_HEADER_BYTES: Final = 32
_MAX_HEADERS: Final = MAX_HEAD_BYTES // 2 // _HEADER_BYTES
"""Of more headers the sizes are added up, even if the request is small."""
_TIMEOUT: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"  # RFC 9110, 15.5.9
)
_TOO_LARGE_PROBLEM: Final = json.dumps(
    {
        "type": TYPE_PREFIX + "http",
        "title": "Request Header Fields Too Large",
        "status": 431,
        "detail": "the address, headers and trailers of the request are larger than "
        f"{MAX_HEAD_BYTES} bytes; send less",
    }
).encode()
_TOO_LARGE: Final = (  # RFC 6585, 5
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: %b\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b"
    % (MEDIA_TYPE.encode(), len(_TOO_LARGE_PROBLEM), _TOO_LARGE_PROBLEM)
)


_NO_ROOM_TEXT: Final = b"the server has as many connections as it may have; try again later"
_NO_ROOM: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_NO_ROOM_TEXT), _NO_ROOM_TEXT)
)


class _HeadTooLargeError(Exception):
    """Ends the parsing of a request."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. A request that arrives in one piece, as most do, costs no timer.

    A request whose head exceeds `MAX_HEAD_BYTES` gets 431.

    Between two requests, `timeout_keep_alive` of uvicorn applies.

    Args:
        patience: See `PATIENCE_SECONDS`.
        limit: How many connections the server may have.
        asks_clients: Whether requests of clients without a certificate are refused.
        **arguments: Those of uvicorn.
    """

    def __init__(
        self,
        *,
        patience: float = PATIENCE_SECONDS,
        limit: ConnectionLimit | None = None,
        asks_clients: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        # uvicorn asks the logger of the process, which another server in it may have configured. Its lines
        # would show the tokens in paths and queries.
        self.access_log = False
        self._patience = patience
        self._limit = limit or ConnectionLimit(DEFAULT_MAX_CONNECTIONS)
        self._asks_clients = asks_clients
        self._begun_at: float | None = None
        """When the request has begun that is not complete. None: there is none."""
        self._heard_at = 0.0
        self._has_headers = False
        self._unfinished = 0
        """How many bytes of a head, or of trailers, have come that are not complete."""
        self._is_too_large = False
        self._timer: asyncio.TimerHandle | None = None
        self._answers: AnswerWriter

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        self._answers = AnswerWriter(transport, self.loop)
        descriptor = transport.get_extra_info("socket").fileno()
        if not self._limit.allows(len(self.connections), descriptor):
            transport.write(_NO_ROOM)
            transport.close()
            return
        if self._asks_clients and not transport.get_extra_info("peercert"):
            self.app = certificate_required
        self.on_message_begin()
        self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._stop_timer()
        super().connection_lost(exc)
        self._limit.note(len(self.connections))

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request."""
        self._unfinished += len(data)
        super().data_received(data)
        if self._unfinished > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()
        if self._begun_at is None:
            if self._timer is not None:
                self._stop_timer()
        elif not self.transport.is_closing():
            self._expect_more()

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        self._begun_at = self.loop.time()
        self._has_headers = False
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._unfinished = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Note that only a body can follow.

        Raises:
            _HeadTooLargeError: The head is too large.
        """
        self._has_headers = True
        # Most requests are small as a whole, and nothing has to be added up.
        if len(self.headers) > _MAX_HEADERS or self._unfinished > MAX_HEAD_BYTES:
            self._check_head()
        self._unfinished = 0
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.transport = self._answers

    def _check_head(self) -> None:
        sizes = (len(name) + len(value) + _HEADER_BYTES for name, value in self.headers)
        if len(self.url) + sum(sizes) > MAX_HEAD_BYTES:
            self._is_too_large = True
            raise _HeadTooLargeError

    def on_message_complete(self) -> None:
        """Note that a request has arrived."""
        self._begun_at = None
        self._unfinished = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed, or is too large."""
        if self._is_too_large:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _refuse_head(self) -> None:
        self.transport.write(_TOO_LARGE)
        self.transport.close()

    def _expect_more(self) -> None:
        self._heard_at = self.loop.time()
        if self._timer is None:
            self._timer = self.loop.call_later(self._patience, self._look)

    def _look(self) -> None:
        """Give the client up, or look again when that may be due."""
        self._timer = None
        if self._begun_at is None or self.transport.is_closing():
            return
        now = self.loop.time()
        until = self._begun_at + self._patience
        if self._has_headers:
            if self.flow.read_paused:  # it is the application that does not read
                self._heard_at = now
            until = min(self._heard_at + self._patience, self._begun_at + _MAX_BODY_TIMES * self._patience)
        if now < until:
            self._timer = self.loop.call_later(until - now, self._look)
            return
        if not self._has_headers:
            self.transport.write(_TIMEOUT)
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
