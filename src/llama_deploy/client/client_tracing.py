"""The spans of a client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import SpanKind

from llama_deploy.interceptors import ClientInterceptor, SubmitCall
from llama_deploy.spans import attempt_context, current, get_tracer, traceparent_of
from llama_deploy.trace_context import TRACE_HEADER


class ClientTracing(ClientInterceptor):
    """Writes a span for each submission, after the conventions for agents, and sends its context."""

    def __init__(self) -> None:
        self._tracer = get_tracer()

    @contextmanager
    def submit(self, call: SubmitCall) -> Iterator[None]:
        """See `ClientInterceptor`."""
        submission = call.submission
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": submission.service_name,
            "llama_deploy.task_id": submission.task_id,
        }
        span = self._tracer.start_span(
            f"invoke_agent {submission.service_name}", kind=SpanKind.CLIENT, attributes=attributes
        )
        with current(span):
            attempt = attempt_context.get()
            call.headers[TRACE_HEADER] = traceparent_of(attempt or span.get_span_context())
            try:
                yield
            finally:
                if call.view is not None:
                    span.set_attribute("llama_deploy.status", call.view.status.value)
