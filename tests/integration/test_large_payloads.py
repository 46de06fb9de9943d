"""No task depends on how large a message its broker takes: what is large goes by the control plane."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy.codec import qualified_name
from llama_deploy.control_plane.direct_gateway import DirectGateway
from llama_deploy.errors import UnavailableError
from llama_deploy.message_queues import LocalMessageQueue, SimpleMessageQueueConfig, config_from_url
from llama_deploy.message_queues.base import MessageQueueConfig
from llama_deploy.messages import QueueMessage
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.services.gateway import HttpGateway
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import TaskStatus
from llama_deploy.types.instance_protocol import MAX_REPORT_BYTES, AttemptPart, PartReply, PartRequest
from tests.integration.in_process import Stack, result_of, running_stack
from tests.integration.on_sqs import settings as sqs_settings
from tests.servers.nats import NatsServer
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.sqs import SqsServer

MIB: Final = 1024 * 1024
BROKERS: Final = ("nats", "rabbitmq", "sqs")


class Piece(Event):
    number: int
    text: str


class Large(Workflow):
    """Takes, streams and returns texts of any length."""

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for number, length in enumerate(ev.get("stream", [])):
            ctx.write_event_to_stream(Piece(number=number, text="e" * length))
        received = ev.get("text", "")
        return StopEvent(result={"received": len(received), "text": "r" * ev.get("returns", 0)})


class Waiting(Workflow):
    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        piece = await ctx.wait_for_event(Piece)
        return StopEvent(result=len(piece.text) * ev.get("times", 1))


class Grown(Event):
    round: int
    text: str


class Growing(Workflow):
    """Keeps much in its journal, and waits in its last step."""

    def __init__(self, gate: asyncio.Event) -> None:
        super().__init__(timeout=None)
        self.gate = gate
        self.rounds: list[int] = []

    @step
    async def begin(self, ev: StartEvent) -> Grown:
        return Grown(round=0, text="j" * ev.get("length"))

    @step
    async def grow(self, ev: Grown) -> Grown | StopEvent:
        self.rounds.append(ev.round)
        if ev.round < 3:
            return Grown(round=ev.round + 1, text=ev.text)
        await self.gate.wait()
        return StopEvent(result=ev.round)


class Counting(HttpGateway):
    """Counts the characters of what claims have left out."""

    def __init__(self, control_plane_url: str) -> None:
        super().__init__(control_plane_url)
        self.fetched: Counter[AttemptPart] = Counter()

    async def part(self, request: PartRequest) -> PartReply:
        reply = await super().part(request)
        self.fetched[request.part] += len(reply.text)
        return reply


@pytest.fixture(scope="module", params=BROKERS)
def small_queue(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The settings of a queue that takes no message of more than 1 MiB, or less."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "nats":
        with NatsServer(folder) as nats:
            yield config_from_url(nats.url)
    elif request.param == "rabbitmq":
        with RabbitMQServer(folder, "max_message_size = 262144") as rabbitmq:
            yield config_from_url(rabbitmq.url)
    else:
        with SqsServer(folder) as sqs:
            yield sqs_settings(sqs.endpoint_url)


@pytest.fixture
async def stack(small_queue: MessageQueueConfig) -> AsyncIterator[Stack]:
    async with running_stack(small_queue.connect, lease_seconds=5.0, max_body_bytes=64 * MIB) as stack:
        yield stack


@pytest.fixture
async def local() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


def over_http(
    stack: Stack, workflow: Workflow, gateway: HttpGateway | None = None, **fields: Any
) -> WorkflowService:
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="service", **fields)
    return WorkflowService(
        workflow, stack.queue, config, gateway=gateway or HttpGateway(stack.server.config.url)
    )


@asynccontextmanager
async def serving(stack: Stack, service: WorkflowService) -> AsyncIterator[None]:
    async with stack.serving(service):
        yield
    await service.gateway.close()


async def test_an_input_larger_than_any_message_arrives(stack: Stack) -> None:
    async with serving(stack, over_http(stack, Large())):
        assert result_of(await stack.run(text="x" * (9 * MIB)))["received"] == 9 * MIB


async def test_a_journal_larger_than_any_message_goes_on_elsewhere(stack: Stack) -> None:
    gate = asyncio.Event()
    first, second = Growing(gate), Growing(gate)
    options: dict[str, Any] = {"durability": "step", "drain_timeout": 0.0}
    async with serving(stack, over_http(stack, first, **options)):
        task_id = await stack.submit(length=20 * MIB)
        await eventually(lambda: 3 in first.rounds, seconds=60)
    gate.set()
    gateway = Counting(stack.server.config.url)
    async with serving(stack, over_http(stack, second, gateway, **options)):
        assert result_of(await stack.end(task_id)) == 3
    assert second.rounds == [3]
    assert gateway.fetched[AttemptPart.RUN] >= 20 * MIB


async def test_a_result_larger_than_any_message_comes_back(stack: Stack) -> None:
    async with serving(stack, over_http(stack, Large())):
        assert result_of(await stack.run(returns=3 * MIB))["text"] == "r" * (3 * MIB)


async def test_a_result_that_fits_into_no_topic_of_the_simple_queue_comes_back() -> None:
    settings = SimpleMessageQueueConfig(max_bytes_per_topic=100_000)
    assert settings.max_bytes_per_topic < MAX_REPORT_BYTES
    async with (
        running_stack(partial(LocalMessageQueue.start, settings)) as stack,
        stack.serving(stack.service(Large())),
    ):
        assert len(result_of(await stack.run(returns=150_000))["text"]) == 150_000


async def test_large_streamed_events_come_in_order_between_small_ones(stack: Stack) -> None:
    lengths = [10, 2 * MIB, 10, 300_000, 10, 10, 3 * MIB]
    async with serving(stack, over_http(stack, Large())):
        view = await stack.run(stream=lengths)
        result_of(view)
        events = await stack.events(view.task_id)
    assert [(event.index, len(event.data["text"])) for event in events[:-1]] == list(enumerate(lengths))
    assert [event.terminal for event in events] == [False] * len(lengths) + [True]


async def test_an_event_larger_than_any_message_reaches_its_run(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(stack, over_http(stack, Waiting(timeout=None), allowed_types=[qualified_name(Piece)])):
        task_id = await stack.submit()

        async def is_running() -> bool:
            return (await stack.plane.tasks.get(task_id)).status is TaskStatus.WAITING

        await eventually(is_running)
        await stack.send(task_id, Piece(number=1, text="s" * (2 * MIB)))
        assert result_of(await stack.end(task_id)) == 2 * MIB
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


class Losing(DirectGateway):
    """Loses the first reports that it is given: each seems to arrive, and none does."""

    losses = 1

    async def report(self, message: QueueMessage) -> None:
        if self.losses:
            self.losses -= 1
            return
        await super().report(message)


class Hesitating(DirectGateway):
    """Stores a report, and then the connection breaks before its answer."""

    failures = 2

    async def report(self, message: QueueMessage) -> None:
        await super().report(message)
        if self.failures:
            self.failures -= 1
            raise UnavailableError("the connection broke")


@pytest.mark.parametrize("gateway", [Losing, Hesitating])
async def test_an_uploaded_outcome_counts_once_whatever_is_lost(
    local: Stack, gateway: type[DirectGateway]
) -> None:
    service = WorkflowService(
        Large(),
        local.queue,
        WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="service"),
        gateway=gateway(local.plane),
    )
    async with local.serving(service):
        view = await local.run(returns=MIB)
        assert len(result_of(view)["text"]) == MIB
        assert view.attempt == 1
        assert [event.terminal for event in await local.events(view.task_id)] == [True]
