"""The spans of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode

from llama_deploy.interceptors import AttemptCall, StepCall, WorkerInterceptor
from llama_deploy.spans import (
    DISPATCH_HEADER,
    attempt_context,
    attempt_span_id,
    below,
    failed,
    get_tracer,
    remote_context,
    span_id,
)
from llama_deploy.types import TaskStatus
from llama_deploy.workflow_library import WaitingForEvent


class WorkerTracing(WorkerInterceptor):
    """Writes a span for each attempt and each step. Reports have none: they may be thousands."""

    def __init__(self) -> None:
        self._tracer = get_tracer()

    @contextmanager
    def attempt(self, call: AttemptCall) -> Iterator[None]:
        """See `WorkerInterceptor`.

        The span of an attempt that was lost is not ended, and thus not exported: the control plane has
        written it.
        """
        task = call.task
        parent = remote_context(call.headers)
        wanted, links = None, []
        if parent is not None:
            wanted = attempt_span_id(parent.trace_id, task.task_id, task.attempt)
            sent = remote_context(call.headers, DISPATCH_HEADER)
            if sent is not None:
                links.append(Link(sent))
            if task.attempt > 1:
                before = attempt_span_id(parent.trace_id, task.task_id, task.attempt - 1)
                links.append(
                    Link(SpanContext(parent.trace_id, before, is_remote=True, trace_flags=parent.trace_flags))
                )
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": task.service_name,
            "gen_ai.conversation.id": task.session_id,
            "llama_deploy.task_id": task.task_id,
            "llama_deploy.attempt": task.attempt,
        }
        with span_id(wanted):
            span = self._tracer.start_span(
                f"attempt {task.service_name}",
                context=below(parent),
                kind=SpanKind.CONSUMER,
                attributes=attributes,
                links=links,
            )
        token = contexts.attach(trace.set_span_in_context(span))
        of_attempt = attempt_context.set(span.get_span_context())
        try:
            yield
        finally:
            attempt_context.reset(of_attempt)
            contexts.detach(token)
            if call.status is not None or call.is_handed_back:
                status = "handed_back" if call.status is None else call.status.value
                span.set_attribute("llama_deploy.status", status)
                if call.status in (TaskStatus.FAILED, TaskStatus.TIMED_OUT):
                    span.set_status(Status(StatusCode.ERROR, status))
                span.end()

    @contextmanager
    def step(self, call: StepCall) -> Iterator[None]:
        """See `WorkerInterceptor`. A wait ends the span; the step has another one when it goes on."""
        span = self._tracer.start_span(
            f"step {call.step_name}", attributes={"llama_deploy.step": call.step_name}
        )
        token = contexts.attach(trace.set_span_in_context(span))
        try:
            yield
        except WaitingForEvent:
            span.set_attribute("llama_deploy.waits", value=True)
            raise
        except Exception as exc:
            failed(span, exc)
            raise
        finally:
            contexts.detach(token)
            span.end()
