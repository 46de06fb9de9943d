"""The connection between a supervisor and one of its children: JSON objects, one per line, over a socket.

A child says `hello` once, `ready` once, `beat` with each heartbeat, `alone` to ask for a process that runs
the suspects of a service, `gone` for each instance that stops, and `done` when it ends. The supervisor says
`stop`, and before it, if it runs a control plane, once its URL: `control_plane`. When it asks for `metrics`,
the child answers with their `text`. The end of the connection
tells each side that the other one is gone.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

_CHUNK: Final = 64 * 1024


@dataclass(slots=True, eq=False)
class Channel:
    """One end of a connection. `close` it. Threads may send while another one receives."""

    socket: socket.socket
    _received: bytes = field(default=b"", init=False)
    """The beginning of a line."""
    _sending: threading.Lock = field(default_factory=threading.Lock, init=False)
    """Held while a message is sent, so that those of two threads do not mix."""

    def send(self, message: dict[str, Any]) -> None:
        """Send a message. If the other side is gone, nothing happens.

        Raises:
            BlockingIOError: The socket does not block, and the other side does not read.
        """
        self.send_line(json.dumps(message).encode())

    def send_line(self, line: bytes) -> None:
        """Send an encoded message; see `send`."""
        with self._sending, suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(line + b"\n")

    def receive(self) -> Sequence[dict[str, Any]] | None:
        """Return the messages that have arrived; wait for some if the socket blocks. None: the other is gone.

        Raises:
            BlockingIOError: The socket does not block, and there is nothing.
            ValueError: What has arrived is not a message.
        """
        try:
            received = self.socket.recv(_CHUNK)
        except ConnectionResetError:
            return None
        if not received:
            return None
        *lines, self._received = (self._received + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self.socket.close()
