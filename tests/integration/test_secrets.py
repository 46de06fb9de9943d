"""What workflows and clients do with an object that has a key: it reaches no database and no log."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.llms import MockLLM
from llama_index.core.schema import Document
from pydantic import BaseModel, Field
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, StartEvent, StopEvent

from llama_deploy import Client, LocalStack
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.deploy import HostedWorkflow
from llama_deploy.errors import SerializationError, TaskFailedError
from llama_deploy.message_queues import SimpleMessageQueueConfig
from llama_deploy.types import TaskDefinition

KEY = "sk-4f9a-never-stored"


class KeyedLLM(MockLLM):
    api_key: str = KEY

    def __init__(self) -> None:
        super().__init__(max_tokens=None)


class HandMade(BaseModel):
    api_key: str = KEY

    def complete(self, prompt: str) -> str:
        return prompt


class Hidden(BaseModel):
    text: str = "found"
    model: Any = Field(exclude=True)


class Passed(Event):
    model: Any


class Leaking(Workflow):
    """Puts an object with a key wherever a value can go."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Passed | StopEvent:  # noqa: PLR0911 - a way each
        model = HandMade() if ev.get("kind", "llm") == "model" else KeyedLLM()
        match ev.way:
            case "result":
                return StopEvent(result=[model])
            case "text":
                return StopEvent(result=[object(), ValueError(model), {"of": SimpleNamespace(model=model)}])
            case "item":
                return StopEvent(result=(each for each in [1, [object(), model]]))
            case "raw":
                return StopEvent(result=[CompletionResponse(text="done", raw={"holds": model})])
            case "stream":
                ctx.write_event_to_stream(Event(model={"held": model}))
            case "hidden":
                return StopEvent(result=Hidden(model=model))
            case "hidden in a list":
                return StopEvent(result=[Hidden(model=model)])
            case "items":
                return StopEvent(result=(each for each in [model, object()]))
            case "state":
                await ctx.store.set("model", model)
            case _:
                return Passed(model=model)
        return StopEvent(result="done")

    @step
    async def end(self, ev: Passed) -> StopEvent:
        return StopEvent(result=type(ev.model).__name__)


class Reading(Workflow):
    @step
    async def read(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.api_key[:2])


def stored(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


@pytest.fixture
async def stack(tmp_path: Path) -> Any:
    store = f"sqlite:///{tmp_path}/control_plane.db"
    async with await LocalStack.start(
        [HostedWorkflow.named("leaking", Leaking), HostedWorkflow.named("reading", Reading)],
        control_plane_config=ControlPlaneConfig(port=0, state_store_uri=store),
        message_queue_config=SimpleMessageQueueConfig(port=0),
    ) as stack:
        yield stack


@pytest.mark.parametrize("kind", ["llm", "model"])
@pytest.mark.parametrize(
    "way",
    ["result", "text", "item", "items", "raw", "stream", "hidden", "hidden in a list", "state", "event"],
)
async def test_what_a_workflow_does_with_an_object_stores_no_secret(
    stack: LocalStack, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str, kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Client(stack.control_plane_url) as client:
        try:
            result = str(await client.run("leaking", way=way, kind=kind))
        except TaskFailedError as exc:
            result = str(exc)
    assert ("neither sent nor stored" in result) == (
        way not in ("raw", "hidden", "hidden in a list", "state", "event")
    ), result
    assert KEY.encode() not in stored(tmp_path)
    assert KEY not in caplog.text + result


async def test_clients_send_no_live_objects_on_any_way(stack: LocalStack, tmp_path: Path) -> None:
    llm = KeyedLLM()
    async with Client(stack.control_plane_url) as client:
        session = await client.core.sessions.create()
        handle = await client.submit("leaking", way="result")
        for send in (
            client.submit("leaking", llm=llm),
            client.submit("leaking", arguments={"models": [{"llm": llm}]}),
            client.run("leaking", llm=llm),
            session.run("leaking", llm=llm),
            session.run_nowait("leaking", llm=llm),
            session.update_state({"llm": llm}),
            session.set_state({"llm": llm}, version=0),
            session.send_event("leaking", handle.task_id, HumanResponseEvent(llm=llm)),
            handle.send(HumanResponseEvent(llm=llm)),
        ):
            with pytest.raises(SerializationError, match="KeyedLLM, which holds connections") as caught:
                await send
            assert KEY not in str(caught.value)
        assert await session.get_tasks() == []
    assert KEY.encode() not in stored(tmp_path)


async def test_a_key_that_is_an_argument_of_its_own_is_data(stack: LocalStack) -> None:
    async with Client(stack.control_plane_url) as client:
        session = await client.core.sessions.create()
        assert await session.run("reading", api_key=KEY) == "sk"
        assert await session.create_task(TaskDefinition(input='{"api_key": "k"}', agent_id="reading"))
        assert await client.run("reading", api_key=[Document(text="a")])
