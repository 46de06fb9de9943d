"""A program that hosts its own workflow if it is run, and that `llamactl worker` can serve."""

from __future__ import annotations

import asyncio
import logging
import os

from pydantic import BaseModel
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import ControlPlaneConfig, WorkflowServiceConfig, deploy_workflow


class Seen(BaseModel):
    pids: list[int] = []


class Asked(InputRequiredEvent):
    number: int


class Answer(HumanResponseEvent):
    text: str


class Note(BaseModel):
    pid: int


class Noted(Event):
    note: Note


class Either(Workflow):
    """Asks twice, and notes in which processes its steps have ended."""

    @step
    async def note(self, ctx: Context[Seen], ev: StartEvent) -> Noted:
        async with ctx.store.edit_state() as seen:
            seen.pids.append(os.getpid())
        return Noted(note=Note(pid=os.getpid()))

    @step
    async def ask(self, ctx: Context[Seen], ev: Noted) -> StopEvent:
        texts = []
        for number in range(2):
            answer = await ctx.wait_for_event(
                Answer,
                waiter_event=Asked(number=number),
                requirements={"number": number},
                timeout=None if number else 3600,
            )
            texts.append(answer.text)
        async with ctx.store.edit_state() as seen:
            seen.pids.append(os.getpid())
        return StopEvent(result={"texts": texts, "first": ev.note.pid, "pids": seen.pids})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(
        deploy_workflow(
            Either,
            WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="either"),
            ControlPlaneConfig(),
        )
    )
