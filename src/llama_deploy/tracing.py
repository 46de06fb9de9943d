"""Whether this program writes traces with OpenTelemetry, and the ids of the present span.

The API of OpenTelemetry is only used when a program has imported it: without that nothing can record.
"""

from __future__ import annotations

import sys


def is_active() -> bool:
    """Whether the program has set up the SDK of OpenTelemetry, or another one, so that spans are recorded."""
    if "opentelemetry.trace" not in sys.modules:
        return False
    from opentelemetry import trace  # noqa: PLC0415 - see the docstring of the module

    unset = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)
    return not isinstance(trace.get_tracer_provider(), unset)


def log_ids() -> dict[str, object]:
    """Return the ids of the current span, for a log. Empty: there is none."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry import trace  # noqa: PLC0415 - see the docstring of the module

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
