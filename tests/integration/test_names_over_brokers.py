"""Services whose names have characters that brokers refuse in topics, over each broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, StartEvent, StopEvent

from llama_deploy.message_queues import config_from_url
from tests.integration.in_process import Stack, result_of, running_stack
from tests.servers.brokers import FASTEST, Broker, Kind

NAMES = [
    "my service",
    "team/adder",
    "a:b",
    "a.b",
    "你好,世界",
    "_private",
    "a.dead_letters",
    "é" * 200,
    "x" * 200,
]
NAMESPACES = ["team.alpha-1", "n" * 64]


class Asked(Event):
    text: str


class Ask(Workflow):
    """Streams a question, and takes the answer while it runs."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Asked(text=ev.get("text", "")))
        answer = await ctx.wait_for_event(HumanResponseEvent)
        return StopEvent(result=answer.response)


@pytest.fixture(scope="module", params=FASTEST)
def kind(request: pytest.FixtureRequest) -> Kind:
    return FASTEST[request.param]


@pytest.fixture(scope="module")
def broker(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with kind.make(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(params=NAMESPACES)
async def stack(
    kind: Kind, broker: Broker, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stack]:
    for name, value in kind.environment.items():
        monkeypatch.setenv(name, value)
    connect = config_from_url(broker.url).connect
    async with running_stack(connect, lease_seconds=30.0, topic_namespace=request.param) as stack:
        yield stack


async def test_a_service_with_any_name_works_over_each_broker(stack: Stack) -> None:
    async with AsyncExitStack() as serving:
        for name in NAMES:
            await serving.enter_async_context(stack.serving(stack.service(Ask(timeout=None), name)))

        async def ask(name: str) -> None:
            task_id = await stack.submit(name, text=name)

            stream = await stack.plane.tasks.events(task_id)
            await anext(stream)
            await stack.send(task_id, HumanResponseEvent(response=f"to {name}"))
            assert result_of(await stack.end(task_id)) == f"to {name}"
            texts = [event.data.get("text") for event in await stack.events(task_id)]
            assert texts[0] == name

        async with asyncio.timeout(60):
            await asyncio.gather(*map(ask, NAMES))
