"""One instance of a service that streams an answer as agents do: each event repeats the answer so far."""

from __future__ import annotations

import asyncio
import logging

from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy import ControlPlaneConfig, WorkflowServiceConfig, deploy_workflow


class Planned(Event):
    words: int
    seconds: float


class Written(Event):
    delta: str
    response: str


class Answerer(Workflow):
    @step
    async def plan(self, ctx: Context, ev: StartEvent) -> Planned:
        ctx.write_event_to_stream(Written(delta="plan", response="plan"))
        return Planned(words=ev.words, seconds=ev.seconds)

    @step
    async def write(self, ctx: Context, ev: Planned) -> StopEvent:
        response = ""
        for number in range(ev.words):
            delta = f"word-{number} "
            response += delta
            ctx.write_event_to_stream(Written(delta=delta, response=response))
            await asyncio.sleep(ev.seconds / ev.words)
        return StopEvent(result=response)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="answers", max_concurrent_tasks=40)
    asyncio.run(deploy_workflow(Answerer(timeout=None), config, ControlPlaneConfig()))
