"""Lets the kernel notice that the other end of a connection is gone, or its network.

Without this a connection that nobody reads any more stays open for a quarter of an hour if something was
sent, and for ever if not; see `tcp(7)`.
"""

from __future__ import annotations

import socket
from typing import Any, Final

_IDLE_SECONDS: Final = 30
_PROBE_SECONDS: Final = 10
_PROBES: Final = 3
_UNREAD_SECONDS: Final = 120
"""How long what was sent may be neither confirmed nor taken by the other end."""

_OPTIONS: Final = (
    ("TCP_KEEPIDLE", _IDLE_SECONDS),
    ("TCP_KEEPALIVE", _IDLE_SECONDS),  # the name on macOS
    ("TCP_KEEPINTVL", _PROBE_SECONDS),
    ("TCP_KEEPCNT", _PROBES),
    ("TCP_USER_TIMEOUT", _UNREAD_SECONDS * 1000),
)

SOCKET_OPTIONS: Final[list[tuple[int, int, int]]] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _OPTIONS
        if hasattr(socket, name)
    ),
]
"""Level, name and value of each option of a TCP connection. A listener hands them on to what it accepts."""


def watched(connection: socket.socket) -> socket.socket:
    """Return a TCP socket with `SOCKET_OPTIONS`."""
    for level, name, value in SOCKET_OPTIONS:
        connection.setsockopt(level, name, value)
    return connection


def new_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an entry of `getaddrinfo`, with `SOCKET_OPTIONS`."""
    family, kind, protocol = address[:3]
    return watched(socket.socket(family, kind, protocol))
