"""One instance of a service that streams a text in tokens, after a step that streams its title."""

from __future__ import annotations

import asyncio
import logging

from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy import ControlPlaneConfig, WorkflowServiceConfig, deploy_workflow

TOKENS = 200


class Token(Event):
    text: str


class Titled(Event):
    pass


class Writer(Workflow):
    @step
    async def title(self, ctx: Context, ev: StartEvent) -> Titled:
        ctx.write_event_to_stream(Token(text="title"))
        return Titled()

    @step
    async def write(self, ctx: Context, ev: Titled) -> StopEvent:
        for number in range(TOKENS):
            ctx.write_event_to_stream(Token(text=str(number)))
            await asyncio.sleep(0.01)
        return StopEvent(result="written")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="writer")
    asyncio.run(deploy_workflow(Writer(timeout=None), config, ControlPlaneConfig()))
