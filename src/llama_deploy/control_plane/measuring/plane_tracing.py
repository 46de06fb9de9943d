"""The spans of a control plane."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from llama_deploy.interceptors import AcceptCall, AttemptLoss, ControlPlaneInterceptor, DispatchCall
from llama_deploy.spans import (
    DISPATCH_HEADER,
    attempt_span_id,
    below,
    current,
    get_tracer,
    remote_context,
    span_id,
    traceparent_of,
)
from llama_deploy.trace_context import TRACE_HEADER

_MICROSECOND: Final = 1_000


class PlaneTracing(ControlPlaneInterceptor):
    """Writes a span for each submission, each dispatch, and each attempt whose worker cannot write it."""

    def __init__(self) -> None:
        self._tracer = get_tracer()

    @contextmanager
    def submit(self, call: AcceptCall) -> Iterator[None]:
        """See `ControlPlaneInterceptor`. The span is below that of the request, if there is one."""
        parent = None if call.trace is None else remote_context({TRACE_HEADER: call.trace})
        # The current span may be that of this request, below its caller, or that in which the server started.
        here = trace.get_current_span().get_span_context()
        if parent is not None and here.is_valid and here.trace_id == parent.trace_id:
            parent = None
        attributes = {"llama_deploy.service": call.service_name, "llama_deploy.task_id": call.task_id}
        if call.parent_task_id is not None:
            attributes["llama_deploy.parent_task_id"] = call.parent_task_id
        if call.retry_of is not None:
            attributes["llama_deploy.retry_of"] = call.retry_of
        span = self._tracer.start_span(
            f"accept {call.service_name}", context=below(parent), kind=SpanKind.SERVER, attributes=attributes
        )
        with current(span):
            call.trace = traceparent_of(span.get_span_context())
            yield

    @contextmanager
    def dispatch(self, call: DispatchCall) -> Iterator[None]:
        """See `ControlPlaneInterceptor`."""
        message = call.message
        parent = remote_context(message.headers)
        if parent is None:
            yield
            return
        attributes: dict[str, str | int] = {
            "messaging.system": "llama_deploy",
            "messaging.operation.type": "send",
            "messaging.destination.name": call.topic,
            "messaging.message.id": message.id_,
            "llama_deploy.attempt": int(message.data.get("attempt", 0)),
        }
        span = self._tracer.start_span(
            f"send {call.topic}", context=below(parent), kind=SpanKind.PRODUCER, attributes=attributes
        )
        message.headers[DISPATCH_HEADER] = traceparent_of(span.get_span_context())
        with current(span):
            yield

    def lost(self, loss: AttemptLoss) -> None:
        """See `ControlPlaneInterceptor`. Writes the span that the worker has not ended."""
        if loss.trace is None or loss.claimed_at is None:
            return
        parent = remote_context({TRACE_HEADER: loss.trace})
        if parent is None or not hasattr(self._tracer, "id_generator"):
            return  # what was below the span could not be known to be below this one
        attributes: dict[str, str | int] = {
            "llama_deploy.service": loss.service_name,
            "llama_deploy.task_id": loss.task_id,
            "llama_deploy.attempt": loss.attempt,
            "llama_deploy.lost": True,
            "llama_deploy.charged": loss.is_charged,
        }
        with span_id(attempt_span_id(parent.trace_id, loss.task_id, loss.attempt)):
            span = self._tracer.start_span(
                f"attempt {loss.service_name}",
                context=below(parent),
                kind=SpanKind.CONSUMER,
                attributes=attributes,
                start_time=_nanoseconds(loss.claimed_at),
            )
        span.set_status(Status(StatusCode.ERROR, "the attempt was lost with its process, or its lease"))
        span.end(_nanoseconds(loss.lost_at))


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * _MICROSECOND
