"""Counts the tokens of every model call by service, step and model, as a metric of Prometheus.

Pass `TokenMetrics()` to `WorkflowService(interceptors=[...])`, or declare it in a package of yours:

    [project.entry-points."llama_deploy.worker_interceptors"]
    token-metrics = "token_metrics:TokenMetrics"

`GET /metrics` of control plane and worker shows the metric without further work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMCompletionEndEvent
from llama_index_instrumentation import get_dispatcher
from prometheus_client import Counter

from llama_deploy.interceptors import StepCall, WorkerInterceptor

TOKENS: Final = Counter("model_tokens", "Tokens of model calls.", ["service", "step", "model", "kind"])
KINDS: Final = {
    "prompt_tokens": "input",
    "input_tokens": "input",
    "completion_tokens": "output",
    "output_tokens": "output",
}
"""How providers name what they have counted."""

current_step: ContextVar[StepCall | None] = ContextVar("step_of_tokens", default=None)
last_counted: ContextVar[object] = ContextVar("last_counted", default=None)


class TokenHandler(BaseEventHandler):
    """Gets the end of every model call, in the context of the step that has made it."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the library knows it."""
        return "TokenHandler"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        """Count the tokens that the answer of a model tells."""
        if not isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent):
            return
        raw = getattr(event.response, "raw", None)
        # A model that chats by completing tells both.
        if raw is None or raw is last_counted.get():
            return
        last_counted.set(raw)
        answer = as_mapping(raw)
        call = current_step.get()
        service = "" if call is None or call.task is None else call.task.service_name
        step = "" if call is None else call.step_name
        for name, count in as_mapping(answer.get("usage")).items():
            if name in KINDS and isinstance(count, int):
                TOKENS.labels(service, step, str(answer.get("model", "")), KINDS[name]).inc(count)


def as_mapping(answer: Any) -> Mapping[str, Any]:
    """Return the fields of what a provider's client returns: a dict, or an object."""
    if isinstance(answer, Mapping):
        return answer
    return {} if answer is None else vars(answer)


class TokenMetrics(WorkerInterceptor):
    """Notes the step for which a model is called."""

    def __init__(self) -> None:
        get_dispatcher().add_event_handler(TokenHandler())

    @contextmanager
    def step(self, call: StepCall) -> Iterator[None]:
        """Run the step in a context that names it."""
        token = current_step.set(call)
        try:
            yield
        finally:
            current_step.reset(token)
