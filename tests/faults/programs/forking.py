"""Queue, control plane and a service in one process, whose steps start children that outlive it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import (
    ControlPlaneConfig,
    SimpleMessageQueueConfig,
    WorkflowServiceConfig,
    deploy_core,
    deploy_workflow,
)

CHILDREN: list[Any] = []
"""What must not be collected."""


def start(kind: str) -> list[int]:
    """Start children that live for a while; return their process ids."""
    if kind == "pool":
        pool = multiprocessing.get_context("fork").Pool(2)
        CHILDREN.append(pool)
        pids = sorted(set(pool.map(identify, range(2), chunksize=1)))
        pool.map_async(time.sleep, [60, 60], chunksize=1)
        return pids
    if kind == "executor":
        executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
        CHILDREN.append(executor)
        pids = [executor.submit(identify, 0).result()]
        executor.submit(time.sleep, 60)
        return pids
    if kind == "subprocess":
        sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        CHILDREN.append(sleeping)
        return [sleeping.pid]
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    return [pid]


def identify(_: int) -> int:
    time.sleep(0.1)
    return os.getpid()


class InThread(Workflow):
    """Starts children in a step that runs in a thread."""

    @step
    def work(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=start(ev.get("kind")))


class InLoop(Workflow):
    """Starts children in a step that runs in the event loop."""

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=start(ev.get("kind")))


class Terminates(Workflow):
    """Ends its pool with signals, as `multiprocessing` does."""

    @step
    def work(self, ev: StartEvent) -> StopEvent:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return StopEvent(result=pool.map(abs, [-1, -2]))


class Waits(Workflow):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(60)
        return StopEvent()


async def main() -> None:
    await asyncio.gather(
        deploy_core(ControlPlaneConfig(), SimpleMessageQueueConfig()),
        *(
            deploy_workflow(cls, WorkflowServiceConfig(host="127.0.0.1", port=0, service_name=cls.__name__))
            for cls in (InThread, InLoop, Terminates, Waits)
        ),
    )


if __name__ == "__main__":
    asyncio.run(main())
