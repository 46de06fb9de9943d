"""The fault round: an instance and the queue are killed under tasks, and every accepted one is judged."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.servers.brokers import Broker

from benchmarks.measurements import Bench, outcome
from benchmarks.processes import Part
from benchmarks.workloads import Errand
from llama_deploy.client import TaskHandle
from llama_deploy.errors import LlamaDeployError
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import TaskEvent

RUNNER: Final = "errand"
"""The service."""
RUNNERS: Final = 2
"""Its instances."""
RUNS_AT_A_TIME: Final = 8
"""Of each instance: the default of a service."""
TASK_SECONDS: Final = 0.05
TASK_EVENTS: Final = 3
RUNNING_SECONDS: Final = 20.0
"""How long it may take until the first tasks run."""
PATIENCE_SECONDS: Final = 60.0
"""How long it may take until the last task has ended."""


@dataclass(slots=True)
class Watched:
    """An accepted task, and what is seen of it."""

    handle: TaskHandle
    errand: Errand
    events: list[TaskEvent] = field(default_factory=list)
    ended: float = 0.0

    @property
    def instances(self) -> list[int]:
        """The processes in which it was started, in order."""
        return [event.data["process_id"] for event in self.events if "process_id" in event.data]

    async def watch(self) -> None:
        """Read its events to the end; `ended` stays 0 if they cannot be read."""
        with contextlib.suppress(LlamaDeployError):
            async for event in self.handle.events():
                self.events.append(event)
            self.ended = time.perf_counter()

    async def fault(self) -> str | None:
        """Return what is wrong with it, None if it ended once, with its result and all its events."""
        if not self.ended:
            return f"task {self.errand.number} has not ended"
        answer = await outcome(self.handle.result())
        if answer != self.errand.number:
            return f"task {self.errand.number} answered {answer!r}"
        if wrong := stream_fault(self.events, count=self.errand.events):
            return f"task {self.errand.number}: {wrong}"
        if [event async for event in self.handle.events()] != self.events:
            return f"task {self.errand.number}: a second reader was told other events"
        return None


def stream_fault(events: Sequence[TaskEvent], *, count: int) -> str | None:
    """Return what is wrong with the stream of a task that tells where it is and then counts."""
    if [event.index for event in events] != list(range(len(events))):
        return "events are missing, doubled or out of order"
    if [event.terminal for event in events] != [False] * (len(events) - 1) + [True]:
        return "it has not ended once, and last"
    starts = [event.index for event in events if "process_id" in event.data]
    last_run = events[starts[-1] + 1 : -1] if starts else []
    if [event.data.get("number") for event in last_run] != list(range(count)):
        return "its last run has not streamed all it should"
    return None


async def faults(bench: Bench, *, queue: Broker, runners: Sequence[Part]) -> None:
    """Kill the instance that works most and the queue, submit more tasks, start the queue again."""
    errands = [
        Errand(number=number, seconds=TASK_SECONDS, events=TASK_EVENTS)
        for number in range(bench.scale.errands)
    ]
    before = 2 * len(errands) // 3
    async with _watching() as watch:
        tasks = watch(await _submit(bench, errands[:before]))
        victim = await _busiest(runners, tasks)
        victim.kill()
        lost_at = time.perf_counter()
        await asyncio.to_thread(queue.kill)
        more, queue_back_at = await asyncio.gather(_submit(bench, errands[before:]), _restart(queue))
        tasks += watch(more)
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: all(task.ended for task in tasks), seconds=PATIENCE_SECONDS)
    wrong = list(filter(None, [await task.fault() for task in tasks]))
    for fault in wrong:
        bench.tally.fail(f"after the loss of an instance and the queue: {fault}")
    bench.tally.succeeded += len(tasks) - len(wrong)
    bench.figures.add(
        errands=len(tasks),
        errands_right=len(tasks) - len(wrong),
        errands_moved=sum(len(set(task.instances)) > 1 for task in tasks),
        errands_seconds=max(task.ended for task in tasks) - lost_at,
        queue_away_seconds=queue_back_at - lost_at,
    )


@asynccontextmanager
async def _watching() -> AsyncIterator[Callable[[list[Watched]], list[Watched]]]:
    """Yield what has tasks watched until the end of the block."""
    watchers: list[asyncio.Task[None]] = []

    def watch(tasks: list[Watched]) -> list[Watched]:
        watchers.extend(asyncio.create_task(task.watch()) for task in tasks)
        return tasks

    try:
        yield watch
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


async def _submit(bench: Bench, errands: Sequence[Errand]) -> list[Watched]:
    handles = await asyncio.gather(
        *(bench.client.submit(RUNNER, **errand.model_dump()) for errand in errands)
    )
    return [Watched(handle, errand) for handle, errand in zip(handles, errands, strict=True)]


async def _busiest(runners: Sequence[Part], tasks: Sequence[Watched]) -> Part:
    """Wait until tasks run; return the instance in which most of them do."""

    def look() -> list[tuple[int, int]]:
        running = Counter(task.instances[-1] for task in tasks if task.instances and not task.ended)
        return running.most_common(1)

    [(process_id, _)] = await eventually(look, seconds=RUNNING_SECONDS)
    return next(part for part in runners if part.pid == process_id)


async def _restart(queue: Broker) -> float:
    """Start the queue again; return when it took connections."""
    await asyncio.to_thread(queue.start)
    return time.perf_counter()
