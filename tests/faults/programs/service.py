"""One instance of a service whose runs write down what they do in a ledger outside of the system."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy import ControlPlaneConfig, WorkflowServiceConfig, deploy_workflow


class Progress(Event):
    n: int


def note(word: str, name: str) -> None:
    """Append a line to the ledger, in one write, so that lines of several processes do not mix."""
    line = f"{time.time():.3f} {word} {name} {os.getpid()}\n"
    with open(os.environ["LEDGER"], "ab", buffering=0) as ledger:  # noqa: PTH123 - unbuffered
        ledger.write(line.encode())


class Ledgered(Workflow):
    """Takes `seconds`, streams `events` numbers meanwhile, and counts the runs of its session."""

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        name = str(ev.get("name", "?"))
        note("begin", name)
        if ev.get("block"):
            time.sleep(float(ev.get("seconds", 0)))
        spins = bool(ev.get("spin"))
        while spins:
            pass
        for n in range(int(ev.get("events", 0))):
            ctx.write_event_to_stream(Progress(n=n))
        if not ev.get("block"):
            await asyncio.sleep(float(ev.get("seconds", 0)))
        if ev.get("exit"):
            os._exit(int(ev.exit))
        count: Any = await ctx.store.get("count", default=0) + 1
        await ctx.store.set("count", count)
        note("end", name)
        return StopEvent(result=f"{name} {count}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    config = WorkflowServiceConfig(host="127.0.0.1", port=0)
    timeout = float(os.environ.get("RUN_TIMEOUT", "inf"))
    workflow = Ledgered(timeout=None if timeout == float("inf") else timeout)
    asyncio.run(deploy_workflow(workflow, config, ControlPlaneConfig()))
