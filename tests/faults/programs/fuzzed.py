"""A service whose tasks succeed, fail, time out, stream, ask or take long, as their arguments say."""

from __future__ import annotations

import asyncio
import logging

from workflows import Context, Workflow, step
from workflows.errors import WorkflowTimeoutError
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import ControlPlaneConfig, WorkflowServiceConfig, deploy_workflow

LONG = 3600.0


class Token(Event):
    text: str


class Ask(InputRequiredEvent):
    prompt: str


class Reply(HumanResponseEvent):
    text: str


class Varied(Workflow):
    @step
    async def work(self, ctx: Context, ev: StartEvent) -> Ask | StopEvent:
        act = ev.get("act")
        await ctx.store.set("act", str(act))
        if act == "fail":
            raise ValueError("it fails")
        if act == "late":
            raise WorkflowTimeoutError("it takes too long")
        if act == "ask":
            return Ask(prompt="go on?")
        if act == "stream":
            for n in range(300):
                ctx.write_event_to_stream(Token(text=f"token {n} "))
        if act == "long":
            await asyncio.sleep(LONG)
        return StopEvent(result={"act": str(act)})

    @step
    async def hear(self, ev: Reply) -> StopEvent:
        return StopEvent(result=ev.text)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    config = WorkflowServiceConfig(host="127.0.0.1", port=0)
    asyncio.run(deploy_workflow(Varied(timeout=5 * LONG), config, ControlPlaneConfig()))
