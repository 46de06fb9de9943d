"""HTTP/1.1 of uvicorn, with limits for clients that begin a request and do not finish it."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PATIENCE_SECONDS: Final = 30.0
"""How long a client may take for the headers of a request, and be silent within its body."""
_MAX_BODY_TIMES: Final = 10
"""How many times as long a whole request may take."""
_TIMEOUT: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"  # RFC 9110, 15.5.9
)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. A request that arrives in one piece, as most do, costs no timer.

    Between two requests, `timeout_keep_alive` of uvicorn applies.

    Args:
        patience: See `PATIENCE_SECONDS`.
        **arguments: Those of uvicorn.
    """

    def __init__(self, *, patience: float = PATIENCE_SECONDS, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._patience = patience
        self._begun_at: float | None = None
        """When the request has begun that is not complete. None: there is none."""
        self._heard_at = 0.0
        self._has_headers = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        self.on_message_begin()
        self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request."""
        super().data_received(data)
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

    def on_headers_complete(self) -> None:
        """Note that only a body can follow."""
        self._has_headers = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that a request has arrived."""
        self._begun_at = None
        super().on_message_complete()

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
