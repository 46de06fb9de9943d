"""The trace to which the present request or step belongs, after W3C Trace Context."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

TRACE_HEADER: Final = "traceparent"
"""The header of requests and messages."""

trace_parent: ContextVar[str | None] = ContextVar("trace_parent", default=None)
"""The `traceparent` of the request that is handled in this context. None: it has none, or no request is."""
