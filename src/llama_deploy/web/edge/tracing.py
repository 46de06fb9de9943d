"""The layer that puts each request into its trace."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from llama_deploy.trace_context import trace_parent

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_SPAN: Final = nullcontext()


@dataclass(frozen=True, slots=True)
class TraceParent:
    """Where a request belongs in a trace, after W3C Trace Context."""

    trace_id: str
    """32 hexadecimal digits."""
    parent_id: str
    """16 hexadecimal digits: the span in which the request was sent."""
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.parent_id}-{self.sampled:02x}"


class Tracer(Protocol):
    """Observes requests."""

    def trace(self, scope: Scope) -> AbstractContextManager[object]:
        """Return a context in which the request is handled; it ends when the request has been answered."""
        ...


class TraceParentReader:
    """The default tracer: notes the caller's `traceparent`.

    It is a `TraceParent` in `scope["state"]["trace_parent"]`, and for those who handle the request a text in
    `trace_context.trace_parent`.
    """

    def trace(self, scope: Scope) -> AbstractContextManager[object]:
        """See `Tracer`. The value is a `TraceParent`; it is missing if there is no valid header."""
        for name, value in scope["headers"]:
            if name == b"traceparent":
                parent = parse_traceparent(value)
                if parent is not None:
                    scope.setdefault("state", {})["trace_parent"] = parent
                    return _within(str(parent))
                break
        return _NO_SPAN


@contextmanager
def _within(parent: str) -> Iterator[None]:
    token = trace_parent.set(parent)
    try:
        yield
    finally:
        trace_parent.reset(token)


class Tracing:
    """Handles each request in the context of a tracer.

    Args:
        app: The next layer.
        tracer: Observes the requests.
    """

    def __init__(self, app: ASGIApp, *, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        with self._tracer.trace(scope):
            await self._app(scope, receive, send)


def parse_traceparent(value: bytes) -> TraceParent | None:
    """Return what a `traceparent` header says, None if it is invalid.

    A later version may append fields, which are ignored; version `ff` is invalid, and so are ids of zeros.
    """
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        return None
    version, trace_id, parent_id, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest) or not int(trace_id, 16) or not int(parent_id, 16):
        return None
    return TraceParent(trace_id.decode(), parent_id.decode(), sampled=bool(int(flags, 16) & 1))
