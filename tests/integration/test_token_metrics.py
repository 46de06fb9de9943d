"""The example that counts the tokens of model calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from examples.token_metrics.token_metrics import TOKENS, TokenHandler, TokenMetrics
from llama_index.core.llms import CompletionResponse, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index_instrumentation import get_dispatcher
from prometheus_client import REGISTRY
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import (
    Client,
    ControlPlaneConfig,
    ControlPlaneServer,
    WorkflowService,
    WorkflowServiceConfig,
)
from llama_deploy.measures import process_text
from llama_deploy.message_queues.simple import LocalMessageQueue
from llama_deploy.state_stores.store_registry import open_state_store
from tests.integration.in_process import stop


class Model(MockLLM):
    """Answers like a provider that counts tokens."""

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002, FBT001, FBT002 - as its base
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": 5, "total_tokens": 99}
        return CompletionResponse(text="yes", raw={"model": "mock", "usage": usage})


class Asks(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> StopEvent:
        Model(max_tokens=None).complete(ev.question)
        return StopEvent(result="done")


@pytest.fixture
def handlers() -> Iterator[None]:
    dispatcher = get_dispatcher()
    before = list(dispatcher.event_handlers)
    yield
    dispatcher.event_handlers = before
    REGISTRY.unregister(TOKENS)


@pytest.mark.usefixtures("handlers")
async def test_every_model_call_writes_its_tokens_as_a_metric() -> None:
    async with (
        await LocalMessageQueue.start() as queue,
        await open_state_store("sqlite:///:memory:") as store,
        ControlPlaneServer(queue, state_store=store, config=ControlPlaneConfig(port=0)) as server,
    ):
        config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="desk")
        gateway = server.gateway()
        service = WorkflowService(Asks, queue, config, gateway=gateway, interceptors=[TokenMetrics()])
        assert any(isinstance(each, TokenHandler) for each in get_dispatcher().event_handlers)
        await service.register_to_control_plane()
        launched = await service.launch_local()
        async with Client(server.config.url) as client:
            for _ in range(2):
                await client.run("desk", question="how many words are these")
        await stop(launched)
    text = process_text()
    of = 'model="mock",service="desk",step="ask"'
    found = {line for line in text.splitlines() if line.startswith("model_tokens_total")}
    assert found == {
        f'model_tokens_total{{kind="input",{of}}} 10.0',
        f'model_tokens_total{{kind="output",{of}}} 10.0',
    }
