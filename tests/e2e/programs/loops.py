"""Workflows that do to the event loop what people do to it."""

import asyncio
import sys
from typing import Any

from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent


async def answer() -> int:
    await asyncio.sleep(0.01)
    return 42


class Nested(Workflow):
    """Runs a loop within the running one."""

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        import nest_asyncio  # type: ignore[import-untyped]  # noqa: PLC0415 - as programs do that cannot choose

        nest_asyncio.apply()
        value: Any = asyncio.run(answer())
        value += asyncio.get_running_loop().run_until_complete(answer())
        return StopEvent(result=f"{value} {type(asyncio.get_running_loop()).__module__.partition('.')[0]}")


class Leaves(Workflow):
    """Leaves tasks behind that try to end the process."""

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        async def end(error: BaseException) -> None:
            raise error

        tasks = [asyncio.create_task(end(error)) for error in (SystemExit(3), KeyboardInterrupt())]
        await asyncio.wait(tasks)
        return StopEvent(result=type(asyncio.get_running_loop()).__module__.partition(".")[0])


class Exhausts(Workflow):
    """Exhausts an iterator in a thread."""

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await asyncio.to_thread(next, iter([])))


class Exits(Workflow):
    """Ends the process in a task group."""

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.end())
            await asyncio.sleep(60)
        return StopEvent()

    async def end(self) -> None:
        sys.exit(3)
