"""The measurements. Each takes a `Bench`, adds figures to it and counts its tasks."""

from __future__ import annotations

import asyncio
import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Final

import psutil

from benchmarks.figures import Figures, Tally
from benchmarks.processes import Part, Server, Stack, all_in_one, cpu_seconds, memory_mib
from benchmarks.workloads import ANSWER, Echo
from llama_deploy.client import Client, TaskHandle
from llama_deploy.errors import LlamaDeployError

Call = Callable[[], Awaitable[object]]

IN_FLIGHT: Final = 64
MAIN_SERVICES: Final = ("echo", "count")
NAP_SERVICES: Final = ("nap",)
DURABILITY_SERVICES: Final = ("echo_by_step", "echo_by_task", "chain_by_step", "chain_by_task")
"""All in one process, so that nothing but their settings differs."""
CHAIN_STEPS: Final = 20
LINGER_SECONDS: Final = 0.03
NAP_SECONDS: Final = 0.02
LONG_NAPS: Final = 20
WARM_UP_SECONDS: Final = 2.0
"""For each part of it, where calls are slow."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    max_rounds: int = 3
    sequential: int = 100
    burst: int = 2000
    first_events: int = 10
    events: int = 1000
    concurrent: int = 500
    idle_seconds: float = 10.0
    shared: int = 200
    lease_seconds: float = 5.0
    long_nap_seconds: float = 1.0
    long_burst: int = 20_000
    most_seconds: float = math.inf
    """After so long no further call is begun of those in sequence, or in flight."""
    errands: int = 60


FULL: Final = Scale()
QUICK: Final = Scale(
    max_rounds=1,
    sequential=10,
    burst=100,
    first_events=3,
    events=100,
    concurrent=50,
    idle_seconds=0.5,
    shared=40,
    lease_seconds=1.0,
    long_nap_seconds=0.5,
    long_burst=500,
    errands=24,
)


@dataclass(slots=True)
class Bench:
    """What a measurement works with."""

    stack: Stack
    client: Client
    service: Part
    """The process with the services `echo` and `count`."""
    scale: Scale
    figures: Figures = field(default_factory=Figures)
    tally: Tally = field(default_factory=Tally)
    naps: list[Part] = field(default_factory=list)
    """The processes with the service `nap`."""
    servers: Mapping[str, Server] = field(default_factory=dict)
    """The server of the queue and that of the store, by these names, where they have one."""

    @property
    def cpu(self) -> dict[str, float]:
        """The CPU time that each part has taken so far, in seconds."""
        return {
            "core": cpu_seconds(self.stack.core.usage),
            "service": cpu_seconds(self.service.usage),
            "client": cpu_seconds(psutil.Process()),
            **{name: server.cpu_seconds() for name, server in self.servers.items()},
        }

    async def timed(self, call: Call, *, expected: object = ANSWER) -> float:
        """Make a call, count it, and return the seconds that it took."""
        started = time.perf_counter()
        answer = await outcome(call())
        seconds = time.perf_counter() - started
        self.tally.record(answer, expected=expected)
        return seconds

    async def in_sequence(self, call: Call, *, times: int) -> list[float]:
        """Make a call again and again; returns the seconds that each took."""
        return [await self.timed(call) for _ in self._turns(times)]

    async def in_flight(self, call: Call, *, times: int) -> tuple[list[float], float]:
        """Make calls, 64 at a time; returns the seconds of each, and of all."""
        latencies: list[float] = []
        left = self._turns(times)

        async def caller() -> None:
            for _ in left:
                latencies.append(await self.timed(call))  # noqa: PERF401 - the callers share the list

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return latencies, time.perf_counter() - started

    def _turns(self, times: int) -> Iterator[int]:
        """Yield one turn after the other, as many as there are to be, while there is time."""
        until = time.perf_counter() + self.scale.most_seconds
        return itertools.takewhile(lambda _: time.perf_counter() < until, range(times))

    async def need_naps(self) -> None:
        """Have two instances of the service `nap`."""
        missing = 2 - len(self.naps)
        started = (
            self.stack.add_services(NAP_SERVICES, max_concurrent_tasks=LONG_NAPS) for _ in range(missing)
        )
        self.naps.extend(await asyncio.gather(*started))


async def outcome(call: Awaitable[object]) -> object:
    """Return what a call answers, or the error with which it fails."""
    try:
        return await call
    except LlamaDeployError as exc:
        return exc


def percentiles(prefix: str, seconds: list[float]) -> dict[str, float]:
    """Return p50 and p95 in milliseconds, as figures."""
    ordered = sorted(seconds)
    return {
        f"{prefix}_p50_ms": 1000 * statistics.median(ordered),
        f"{prefix}_p95_ms": 1000 * ordered[int(0.95 * (len(ordered) - 1))],
    }


async def floor(bench: Bench) -> None:
    """Run the workflow in this process, with nothing of ours."""
    workflow = Echo(timeout=None)
    me = psutil.Process()

    async def run() -> object:
        return await workflow.run()

    alone = await bench.in_sequence(run, times=bench.scale.sequential)
    cpu = cpu_seconds(me)
    _, wall = await bench.in_flight(run, times=bench.scale.burst)
    bench.figures.add(
        floor_p50_ms=1000 * statistics.median(alone),
        floor_tasks_per_second=bench.scale.burst / wall,
        floor_cpu_ms=1000 * (cpu_seconds(me) - cpu) / bench.scale.burst,
    )


async def latency(bench: Bench) -> None:
    """One trivial task after another, by both surfaces of the client."""
    for prefix, seconds in (await latencies(bench)).items():
        bench.figures.add(**percentiles(prefix, seconds))


async def latencies(bench: Bench) -> dict[str, list[float]]:
    """Run one trivial task after another; returns the seconds of each, by the surface of the client."""
    session = await bench.client.core.sessions.create()

    async def session_run() -> object:
        return await session.run("echo")

    async def submit_result() -> object:
        handle = await bench.client.submit("echo")
        return await handle.result()

    calls: dict[str, Call] = {"session_run": session_run, "submit_result": submit_result}
    return {name: await bench.in_sequence(call, times=bench.scale.sequential) for name, call in calls.items()}


async def throughput(bench: Bench) -> None:
    """Trivial tasks with 64 in flight, each in a session of its own."""

    async def run() -> object:
        return await bench.client.run("echo")

    before = bench.cpu
    seconds, wall = await bench.in_flight(run, times=bench.scale.burst)
    cpu = {name: 1000 * (after - before[name]) / len(seconds) for name, after in bench.cpu.items()}
    bench.figures.add(
        tasks_per_second=len(seconds) / wall,
        cpu_ms=sum(cpu.values()),
        **{f"cpu_{name}_ms": value for name, value in cpu.items()},
        **percentiles("loaded", seconds),
    )


async def streaming(bench: Bench) -> None:
    """The first event of tasks that go on after it, and all events of one that streams many at once."""
    firsts = [await _first_event(bench) for _ in range(bench.scale.first_events)]
    seconds, faults = await _all_events(bench, count=bench.scale.events)
    bench.figures.add(
        first_event_ms=1000 * statistics.median(firsts), stream_seconds=seconds, stream_faults=faults
    )


async def _first_event(bench: Bench) -> float:
    """Return the seconds until the first event of a task that is not over by then."""
    started = time.perf_counter()
    handle = await bench.client.submit("count", events=1, linger=LINGER_SECONDS)
    seconds = 0.0
    async for _ in handle.events():
        seconds = seconds or time.perf_counter() - started
    bench.tally.record(await outcome(handle.result()), expected=ANSWER)
    return seconds


async def _all_events(bench: Bench, *, count: int) -> tuple[float, int]:
    """Return the seconds until the last event, and how many were not what they should be."""
    started = time.perf_counter()
    handle = await bench.client.submit("count", events=count)
    events = [
        (event.index, ANSWER if event.terminal else event.data.get("number"))
        async for event in handle.events()
    ]
    seconds = time.perf_counter() - started
    bench.tally.record(await outcome(handle.result()), expected=ANSWER)
    expected = [*enumerate([*range(count), ANSWER])]
    wrong = sum(found != right for found, right in zip(events, expected, strict=False))
    return seconds, wrong + abs(len(events) - len(expected))


async def durability(bench: Bench) -> None:
    """A task of one step and one of many, written down step by step and not, in turns."""
    part = await bench.stack.add_services(DURABILITY_SERVICES, max_concurrent_tasks=IN_FLIGHT)

    def chain(service: str) -> Call:
        return partial(bench.client.run, service, steps=CHAIN_STEPS)

    calls: dict[str, Call] = {
        "echo_by_step": partial(bench.client.run, "echo_by_step"),
        "echo_by_task": partial(bench.client.run, "echo_by_task"),
        "chain_by_step": chain("chain_by_step"),
        "chain_by_task": chain("chain_by_task"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(bench.scale.sequential):
        for name, call in calls.items():
            seconds[name].append(await bench.timed(call))
    await part.stop()
    medians = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    bench.figures.add(
        **{f"{name}_p50_ms": value for name, value in medians.items()},
        step_ms=(medians["chain_by_step"] - medians["chain_by_task"]) / (CHAIN_STEPS - 1),
    )


async def concurrent(bench: Bench) -> None:
    """Many `session.run` of the 0.6 client at once, each in a session of its own."""

    async def run() -> object:
        session = await bench.client.core.sessions.create()
        return await session.run("echo")

    failed = len(bench.tally.failures)
    started = time.perf_counter()
    await asyncio.gather(*(bench.timed(run) for _ in range(bench.scale.concurrent)))
    bench.figures.add(
        concurrent_seconds=time.perf_counter() - started,
        concurrent_errors=len(bench.tally.failures) - failed,
    )


async def idle(bench: Bench) -> None:
    """Nothing to do, for the system that has worked and for one in a single process that has not."""
    core, service = bench.stack.core.usage, bench.service.usage
    async with all_in_one() as single:
        processes = (core, service, single.usage)
        before = [cpu_seconds(process) for process in processes]
        started = time.perf_counter()
        await asyncio.sleep(bench.scale.idle_seconds)
        seconds = time.perf_counter() - started
        used = [cpu_seconds(process) - was for process, was in zip(processes, before, strict=True)]
        bench.figures.add(
            idle_cpu_percent=100 * (used[0] + used[1]) / seconds,
            idle_core_mib=memory_mib(core),
            idle_service_mib=memory_mib(service),
            idle_single_cpu_percent=100 * used[2] / seconds,
            idle_single_mib=memory_mib(single.usage),
        )


async def sharing(bench: Bench) -> None:
    """Short tasks over two instances of one service."""
    await bench.need_naps()
    known = {part.pid for part in bench.naps}
    calls = (bench.client.run("nap", seconds=NAP_SECONDS) for _ in range(bench.scale.shared))
    answers = await asyncio.gather(*map(outcome, calls))
    shares = Counter(answers)
    for answer in answers:
        bench.tally.record(answer, expected=answer if answer in known else "an instance")
    bench.figures.add(least_share_percent=100 * min(shares[pid] for pid in known) / bench.scale.shared)


@dataclass(slots=True)
class Watched:
    """A task that is watched through the loss of an instance."""

    handle: TaskHandle
    running: asyncio.Event = field(default_factory=asyncio.Event)
    starts: list[tuple[int, float]] = field(default_factory=list)
    """In which process it has started, and when."""
    ended: float = 0.0

    async def watch(self) -> None:
        """Read its events to the end."""
        async for event in self.handle.events():
            if "process_id" in event.data:
                self.starts.append((event.data["process_id"], time.perf_counter()))
                self.running.set()
        self.ended = time.perf_counter()
        self.running.set()


async def takeover(bench: Bench) -> None:
    """Kill an instance of two while all tasks run."""
    await bench.need_naps()
    tasks = [
        Watched(await bench.client.submit("nap", seconds=bench.scale.long_nap_seconds, announce=True))
        for _ in range(LONG_NAPS)
    ]
    watching = [asyncio.create_task(task.watch()) for task in tasks]
    for task in tasks:
        await task.running.wait()
    [(victim, _)] = Counter(pid for task in tasks for pid, _ in task.starts).most_common(1)
    killed_at = time.perf_counter()
    next(part for part in bench.naps if part.pid == victim).kill()
    await asyncio.gather(*watching)
    bench.naps = [part for part in bench.naps if part.pid != victim]
    await _judge_takeover(bench, tasks, victim=victim, killed_at=killed_at)


async def _judge_takeover(bench: Bench, tasks: list[Watched], *, victim: int, killed_at: float) -> None:
    [survivor] = (part.pid for part in bench.naps)
    moved: list[float] = []
    for task in tasks:
        *earlier, (last, started_at) = task.starts
        if [pid for pid, _ in earlier] == [victim] and last == survivor:
            moved.append(started_at)
        elif earlier:
            bench.tally.fail(f"a task was started {len(task.starts)} times around the loss of an instance")
        bench.tally.record(await outcome(task.handle.result()), expected=last)
    if moved:
        bench.figures.add(
            takeover_seconds=max(moved) - killed_at,
            takeover_ended_seconds=max(task.ended for task in tasks) - killed_at,
        )
    else:
        bench.tally.fail("no task ran in the instance that was killed")


async def flatness(bench: Bench) -> None:
    """The time of a task after many tasks, and after few; with nothing else in the database than before."""

    async def run() -> object:
        return await bench.client.run("echo")

    small = min(bench.scale.burst, bench.scale.long_burst // 4)
    _, early = await bench.in_flight(run, times=small)
    await bench.in_flight(run, times=bench.scale.long_burst)
    _, late = await bench.in_flight(run, times=small)
    bench.figures.add(
        early_task_ms=1000 * early / small, late_task_ms=1000 * late / small, flatness_ratio=late / early
    )


async def warm_up(bench: Bench) -> None:
    """Load code, open connections, let the database grow a little."""
    scale = replace(
        bench.scale, sequential=10, burst=200, first_events=1, events=100, most_seconds=WARM_UP_SECONDS
    )
    quick = replace(bench, figures=Figures(), scale=scale)
    for measure in (floor, latency, streaming, throughput):
        await measure(quick)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measurement, and how often it is made: what drifts with the machine is made several times."""

    run: Callable[[Bench], Awaitable[None]]
    rounds: int = 1


MEASUREMENTS: Final[Mapping[str, Measurement]] = MappingProxyType(
    {
        "floor": Measurement(floor, rounds=3),
        "latency": Measurement(latency, rounds=3),
        "streaming": Measurement(streaming, rounds=3),
        "throughput": Measurement(throughput, rounds=3),
        "concurrent": Measurement(concurrent, rounds=3),
        "idle": Measurement(idle),
        "sharing": Measurement(sharing, rounds=3),
        "durability": Measurement(durability, rounds=3),
        "takeover": Measurement(takeover, rounds=2),
    }
)
"""In the order in which they run: each once, then each again that has a second round, and so on."""

LONG_MEASUREMENTS: Final[Mapping[str, Measurement]] = MappingProxyType({"flatness": Measurement(flatness)})
"""What takes more than a minute; in a fresh system."""
