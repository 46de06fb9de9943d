"""What the parts have in common when they write traces."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags

from llama_deploy.control_plane.measuring.plane_tracing import PlaneTracing
from llama_deploy.interceptors import AcceptCall
from llama_deploy.spans import attempt_span_id, get_tracer, remote_context, span_id, traceparent_of

CONTEXT = SpanContext(
    0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_remote=True, trace_flags=TraceFlags(1)
)
HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

WITHOUT = """
import sys
from llama_deploy import Client
from llama_deploy.tracing import is_active, log_ids
Client()
print(is_active(), log_ids(), [each for each in sys.modules if each.startswith("opentelemetry")])
"""


def test_a_client_without_opentelemetry_does_not_import_it() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False {} []"


def test_the_context_of_a_span_becomes_a_header_and_comes_back() -> None:
    assert traceparent_of(CONTEXT) == HEADER
    assert remote_context({"traceparent": HEADER}) == CONTEXT


@pytest.mark.parametrize(
    "header", [{}, {"traceparent": "nonsense"}, {"traceparent": HEADER.replace("b7ad6b7169203331", "0" * 16)}]
)
def test_what_is_no_context_is_none(header: dict[str, str]) -> None:
    assert remote_context(header) is None


def test_the_span_of_an_attempt_has_an_id_that_others_know() -> None:
    ids = {attempt_span_id(1, task, attempt) for task in ("a", "b") for attempt in (1, 2)}
    assert len(ids) == 4
    assert all(0 < each < 2**64 for each in ids)
    assert attempt_span_id(1, "a", 1) == attempt_span_id(1, "a", 1)


def test_only_the_span_that_is_started_with_it_gets_a_wanted_id(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = TracerProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    tracer = get_tracer()
    assert get_tracer() is tracer
    with span_id(17):
        wanted = tracer.start_span("wanted")
    other = tracer.start_span("other")
    assert wanted.get_span_context().span_id == 17
    assert other.get_span_context().span_id != 17
    assert wanted.get_span_context().trace_id != other.get_span_context().trace_id


@pytest.mark.parametrize("is_same_trace", [True, False])
def test_a_task_is_in_the_trace_of_its_request(
    monkeypatch: pytest.MonkeyPatch, *, is_same_trace: bool
) -> None:
    """A server that was started within a span has it in the context of each of its requests."""
    provider = TracerProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    here = CONTEXT if is_same_trace else SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
    below_caller = SpanContext(here.trace_id, 17, is_remote=False, trace_flags=TraceFlags(1))
    call = AcceptCall("t", None, "service", None, HEADER)
    with trace.use_span(trace.NonRecordingSpan(below_caller)), PlaneTracing().submit(call):
        span = trace.get_current_span()
    assert isinstance(span, ReadableSpan)
    assert span.parent is not None
    assert span.parent.trace_id == CONTEXT.trace_id
    assert span.parent.span_id == (17 if is_same_trace else CONTEXT.span_id)
