"""Sends the head of an answer together with the beginning of its body."""

from __future__ import annotations

import asyncio
from typing import Final

_HEAD: Final = b"HTTP/1.1 "
_MAX_JOINED_BYTES: Final = 64 * 1024
"""A larger part of a body is not copied to be sent with the head."""


class AnswerWriter(asyncio.Transport):
    """What the answers of one connection are written to.

    uvicorn writes head and body one after the other, each in a packet of its own. The client then wakes up
    twice, and on a busy machine the server waits for the CPU in between. So a head is kept until the first
    part of the body, or until the event loop has done what was ready.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:  # type: ignore[override]
        """Write a head, or a part of a body, which may be empty."""
        if self._head:
            if len(data) <= _MAX_JOINED_BYTES:
                data = self._head + data
                self._head = b""
            else:
                self.flush()
        elif data.startswith(_HEAD):
            self._head = data
            self._loop.call_soon(self.flush)
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Write the head that is kept, if there is one."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def is_closing(self) -> bool:
        """Return whether the connection ends."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Send what is written, and end the connection."""
        self.flush()
        self._transport.close()
