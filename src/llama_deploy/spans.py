"""What clients, control planes and workers have in common when they write traces with OpenTelemetry.

Import it only if `tracing.is_active()`.

One trace has all spans of a task, whichever process has written them. The submission is accepted in the span
`accept`, whose context is stored with the task and travels with each of its messages. All else is below it:

    invoke_agent       the client, until the submission is answered
    └ accept           the control plane
      ├ send           the control plane hands an attempt to the queue
      ├ attempt 1      the worker; or the control plane, if the worker has died
      │ ├ step ...     each step
      │ └ accept       a task that a step has submitted
      └ attempt 2

The id of an attempt's span follows from the task and the attempt, so the control plane can write the span of
an attempt whose process has died, and what was below it still has a parent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Status, StatusCode, TraceFlags, Tracer

from llama_deploy.trace_context import TRACE_HEADER
from llama_deploy.types.keys import public_id

DISPATCH_HEADER: Final = "llama-deploy-dispatch"
"""The header of a message with the `traceparent` of its `send` span, to which the attempt links."""
_NAME: Final = "llama_deploy"
_LENGTH: Final = 55
"""How many characters a `traceparent` has."""

attempt_context: ContextVar[SpanContext | None] = ContextVar("attempt_context", default=None)
"""The span of the attempt for which the present context runs. What a step submits is below it: the span of
the step may be lost with the process."""
_wanted_id: ContextVar[int | None] = ContextVar("wanted_span_id", default=None)


def get_tracer() -> Tracer:
    """Return the tracer of this package, which can give spans a wanted id if the SDK allows it."""
    tracer: Any = trace.get_tracer_provider().get_tracer(_NAME)
    ids = getattr(tracer, "id_generator", None)
    if ids is not None and not isinstance(ids, _WantedIds):
        tracer.id_generator = _WantedIds(ids)
    return tracer  # type: ignore[no-any-return]


class _WantedIds:
    """Generates ids as another generator does, or the wanted one.

    Args:
        others: The generator of the SDK.
    """

    def __init__(self, others: Any) -> None:
        self._others = others

    def generate_span_id(self) -> int:
        """Return the id of a new span."""
        wanted = _wanted_id.get()
        return int(self._others.generate_span_id()) if wanted is None else wanted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._others, name)


@contextmanager
def span_id(wanted: int | None) -> Iterator[None]:
    """Give the span that is started here an id. None: any."""
    token = _wanted_id.set(wanted)
    try:
        yield
    finally:
        _wanted_id.reset(token)


def attempt_span_id(trace_id: int, task_id: str, attempt: int) -> int:
    """Return the id of the span of an attempt."""
    text = f"{trace_id:032x} {public_id(task_id)} {attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") or 1


def remote_context(carrier: Mapping[str, str], name: str = TRACE_HEADER) -> SpanContext | None:
    """Return what a header says, as `traceparent_of` writes it. None: there is none, or it is invalid."""
    text = carrier.get(name)
    if text is None or len(text) != _LENGTH or text[:3] != "00-":
        return None
    try:
        found = SpanContext(
            int(text[3:35], 16),
            int(text[36:52], 16),
            is_remote=True,
            trace_flags=TraceFlags(int(text[53:], 16)),
        )
    except ValueError:
        return None
    return found if found.is_valid else None


def below(parent: SpanContext | None) -> Context | None:
    """Return the context for a span below another one. None: below the current one, if there is one."""
    return None if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())


def traceparent_of(context: SpanContext) -> str:
    """Return the header for what is below a span."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


@contextmanager
def current(span: Span) -> Iterator[None]:
    """Make a span the current one, note an error in it, and end it."""
    token = contexts.attach(trace.set_span_in_context(span))
    try:
        yield
    except Exception as exc:
        failed(span, exc)
        raise
    finally:
        contexts.detach(token)
        span.end()


def failed(span: Span, error: Exception) -> None:
    """Note an error in a span."""
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"[:1000]))
