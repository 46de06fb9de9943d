"""Run arguments, checked before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent
from workflows.handler import WorkflowHandler

from llama_deploy.errors import InvalidRequestError
from llama_deploy.services.values.run_arguments import RunCall
from llama_deploy.types.json_values import decode_object


class Begin(StartEvent):
    topic: str
    ctx: int = 0


class Typed(Workflow):
    @step
    async def end(self, ev: Begin) -> StopEvent:
        return StopEvent(result=ev.topic)


class Loose(Workflow):
    @step
    async def end(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=dict(ev.items()))


class Own(Loose):
    def run(self, topic: str, *, size: int = 1) -> WorkflowHandler:  # type: ignore[override]
        return super().run(topic=topic, size=size)


class Open(Loose):
    def run(self, **kwargs: Any) -> WorkflowHandler:  # type: ignore[override]
        return super().run(**kwargs)


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "5", "null", '"text"', "{"])
def test_only_json_objects_are_arguments(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        decode_object(text, what="the input")


def test_arguments_become_the_start_event() -> None:
    for arguments in (
        {"topic": "a", "ctx": 3},
        {"start_event": {"topic": "a", "ctx": 3}},
        {"start_event": {"__is_pydantic": True, "qualified_name": "x.Y", "value": {"topic": "a", "ctx": 3}}},
    ):
        event = RunCall.prepare(Typed(), arguments).start_event
        assert isinstance(event, Begin)
        assert (event.topic, event.ctx) == ("a", 3), "a field of this name is the workflow's own"


def test_findings_name_the_fields() -> None:
    with pytest.raises(InvalidRequestError, match="topic: Field required; ctx: "):
        RunCall.prepare(Typed(), {"ctx": "many"})


async def test_names_of_the_library_do_not_reach_it() -> None:
    call = RunCall.prepare(Loose(), {"ctx": 1, "run_id": "x", "value": 2})
    started = call.start(None)
    assert isinstance(started, WorkflowHandler), "nothing to wait for"
    assert await started == {"ctx": 1, "run_id": "x", "value": 2}


@pytest.mark.parametrize(
    "arguments",
    [{}, {"topic": "a", "unknown": 1}, {"topic": "a", "ctx": {}}, {"topic": "a", "run_id": "x"}],
)
def test_a_run_of_its_own_is_bound_first(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=r"Own\.run"):
        RunCall.prepare(Own(), arguments)


@pytest.mark.parametrize("name", ["ctx", "run_id", "start_event"])
def test_what_steers_the_library_is_refused_even_if_any_name_is_taken(name: str) -> None:
    assert RunCall.prepare(Open(), {"topic": "a"}).arguments == {"topic": "a"}
    with pytest.raises(InvalidRequestError, match=name):
        RunCall.prepare(Open(), {name: 1})


async def test_a_run_of_its_own_is_called_by_name() -> None:
    call = RunCall.prepare(Own(), {"topic": "a", "size": 2})
    assert await (await call.start_own(None)) == {"topic": "a", "size": 2}
