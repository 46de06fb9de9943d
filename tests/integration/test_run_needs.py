"""What runs store of their needs: when they are sent, and that a parked run needs little."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, StartEvent, StopEvent

from llama_deploy.control_plane.direct_gateway import DirectGateway
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.types.instance_protocol import JournalReply, JournalWrite
from llama_deploy.types.workflow_shape import RunNeeds, StepNeed
from tests.integration.in_process import Stack, result_of, running_stack, until


class Item(BaseModel):
    name: str


class Round(Event):
    left: int
    parts: list[Item]


class Reply(HumanResponseEvent):
    text: str


class Counts(BaseModel):
    rounds: int = 0


class Rounds(Workflow):
    """Goes through rounds, each with the same step and the same classes, then waits, then ends."""

    @step
    async def begin(self, ev: StartEvent) -> Round:
        return Round(left=6, parts=[Item(name="a")])

    @step
    async def turn(self, ctx: Context[Counts], ev: Round) -> Round | StopEvent:
        if ev.left > 1:
            async with ctx.store.edit_state() as state:
                state.rounds += 1
            return Round(left=ev.left - 1, parts=ev.parts)
        reply = await ctx.wait_for_event(Reply)
        return StopEvent(result=reply.text)


class Noting(DirectGateway):
    """Keeps what is written to journals."""

    writes: list[JournalWrite]

    async def journal(self, write: JournalWrite) -> JournalReply:
        self.writes.append(write)
        return await super().journal(write)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack(lease_seconds=30) as stack:
        yield stack


async def test_needs_are_sent_when_they_change(stack: Stack) -> None:
    gateway = Noting(stack.plane)
    gateway.writes = []
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="service", idle_timeout=0.01)
    service = WorkflowService(Rounds(timeout=None), stack.queue, config, gateway=gateway)
    async with stack.serving(service):
        task = await stack.submit()

        async def is_parked() -> bool:
            return await stack.is_parked(task)

        await until(is_parked)
        written = [write for write in gateway.writes if write.entry is not None]
        assert len(written) > 4
        sent = [write.needs for write in written if write.needs is not None]
        assert 1 <= len(sent) <= 3, "each step, class and state is new once"
        assert sent[-1] == RunNeeds(
            steps={
                "begin": StepNeed(takes=["StartEvent"], workers=4),
                "turn": StepNeed(takes=["Round"], workers=4),
            },
            classes={
                f"{__name__}.Item": {"name": "str"},
                f"{__name__}.Reply": None,
                f"{__name__}.Round": {"left": "int", "parts": "list[Item]"},
            },
            state=f"{__name__}.Counts",
            state_classes={f"{__name__}.Counts": {"rounds": "int"}},
            library_version=written[-1].header.library_version,
        )

        heads = await stack.store.read(lambda tx: tx.runs.load([task]))
        assert RunNeeds.model_validate_json(heads[task].needs or "") == RunNeeds(
            steps={"turn": StepNeed(takes=["Round"])},
            classes={
                f"{__name__}.Item": {"name": "str"},
                f"{__name__}.Reply": None,
                f"{__name__}.Round": {"left": "int", "parts": "list[Item]"},
            },
            state=f"{__name__}.Counts",
            state_classes={f"{__name__}.Counts": {"rounds": "int"}},
        )
        await stack.send(task, Reply(text="done"))
        assert result_of(await stack.end(task)) == "done"
