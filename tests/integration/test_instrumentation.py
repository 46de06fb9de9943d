"""The library's instrumentation of hosted runs: complete while a handler listens, left out otherwise."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation.span import SimpleSpan, active_span_id
from llama_index_instrumentation.span_handlers import SimpleSpanHandler
from pydantic import Field
from workflows import Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.types import TaskStatus
from tests.integration.in_process import Stack, running_stack


class Middle(Event):
    number: int


class Chain(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Middle:
        return Middle(number=1)

    @step
    def end(self, ev: Middle) -> StopEvent:
        return StopEvent(result=ev.number)


class Fails(Workflow):
    @step
    async def fall(self, ev: StartEvent) -> StopEvent:
        raise ValueError("down")


class Asks(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent()

    @step
    async def answer(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


class Events(BaseEventHandler):
    found: list[str] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **_: Any) -> None:
        self.found.append(f"{event.class_name()}: {getattr(event, 'output', '')}")


class Spans(SimpleSpanHandler):
    """Notes when spans begin and end; their ids end with a random part."""

    found: list[str] = Field(default_factory=list)

    def new_span(self, id_: str, *rest: Any, **options: Any) -> Any:
        tags = options.get("tags") or {}
        self.found.append(f"begins: {_name(id_)} {tags.get('llamaindex.step.input_summary')}")
        return super().new_span(id_, *rest, **options)

    def prepare_to_exit_span(self, id_: str, *rest: Any, **options: Any) -> SimpleSpan:
        self.found.append(f"ends: {_name(id_)}")
        return super().prepare_to_exit_span(id_, *rest, **options)

    def prepare_to_drop_span(self, id_: str, *rest: Any, **options: Any) -> SimpleSpan | None:
        self.found.append(f"fails: {_name(id_)}")
        return super().prepare_to_drop_span(id_, *rest, **options)


def _name(span_id: str) -> str:
    return span_id.rsplit("-", 5)[0]


class Listener:
    """Handlers at the root of all dispatchers, from `listen` on."""

    def __init__(self) -> None:
        self._events, self._spans = Events(), Spans()

    def listen(self) -> None:
        get_dispatcher().add_event_handler(self._events)
        get_dispatcher().add_span_handler(self._spans)

    def take(self) -> tuple[list[str], list[str]]:
        """Return what they have been told since the last call."""
        events, spans = list(self._events.found), list(self._spans.found)
        self._events.found.clear()
        self._spans.found.clear()
        return events, spans


@pytest.fixture
def listener() -> Iterator[Listener]:
    root = get_dispatcher()
    before = list(root.event_handlers), list(root.span_handlers)  # handlers are added in place
    yield Listener()
    root.event_handlers, root.span_handlers = before


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def run_alone(workflow: type[Workflow]) -> None:
    """Run a workflow with nothing of ours."""
    handler = workflow().run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            await handler.send_event(HumanResponseEvent(response="yes"))
    if workflow is Fails:
        with pytest.raises(ValueError, match="down"):
            await handler
    else:
        await handler


async def run_hosted(stack: Stack, workflow: type[Workflow]) -> None:
    task_id = await stack.submit()
    if workflow is Asks:
        await stack.send(task_id, HumanResponseEvent(response="yes"))
    expected = TaskStatus.FAILED if workflow is Fails else TaskStatus.SUCCEEDED
    assert (await stack.end(task_id)).status is expected


@pytest.mark.parametrize("workflow", [Chain, Fails, Asks])
@pytest.mark.parametrize("is_shared", [False, True])
async def test_a_handler_that_is_added_is_told_of_the_next_runs_as_without_a_service(
    stack: Stack, listener: Listener, workflow: type[Workflow], *, is_shared: bool
) -> None:
    async with stack.serving(stack.service(workflow() if is_shared else workflow)):
        await run_hosted(stack, workflow)
        listener.listen()
        assert listener.take() == ([], [])
        await run_alone(workflow)
        alone = listener.take()
        await run_hosted(stack, workflow)
        hosted = listener.take()
    assert alone[0], "the library tells of events"
    assert alone[1], "the library tells of spans"
    assert hosted == alone


async def result_of(stack: Stack) -> object:
    result = (await stack.run()).result
    assert result is not None
    return result.value


class Looks(Workflow):
    @step
    async def look(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=active_span_id.get())


async def test_a_step_is_in_a_span_only_while_a_handler_listens(stack: Stack, listener: Listener) -> None:
    async with stack.serving(stack.service(Looks)):
        assert await result_of(stack) is None
        listener.listen()
        assert str(await result_of(stack)).startswith("Looks.look-")
