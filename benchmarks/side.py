"""One side of a comparison of revisions: `python -m benchmarks.side`, with that revision in PYTHONPATH.

It starts a system, warms it up and writes a line. For each line of its standard input it measures one slice
and writes it as a line of JSON; it ends when its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.figures import Tally
from benchmarks.measurements import FULL, IN_FLIGHT, MAIN_SERVICES, QUICK, Bench, latencies, warm_up
from benchmarks.processes import Stack

SLICE: Final = replace(FULL, sequential=30, burst=300)
"""How many tasks run one after another, by each surface of the client, and how many with 64 in flight."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What was measured in a few seconds."""

    latencies: dict[str, list[float]]
    """In seconds, of the tasks that ran one after another."""
    tasks: int
    """How many ran with many in flight."""
    seconds: float
    cpu_seconds: float
    """Of all processes."""
    failures: list[str]


async def measure(bench: Bench) -> Slice:
    """Measure one slice."""

    async def run() -> object:
        return await bench.client.run("echo")

    bench = replace(bench, tally=Tally())
    seconds = await latencies(bench)
    before, started = sum(bench.cpu.values()), time.perf_counter()
    await bench.in_flight(run, times=bench.scale.burst)
    return Slice(
        latencies=seconds,
        tasks=bench.scale.burst,
        seconds=time.perf_counter() - started,
        cpu_seconds=sum(bench.cpu.values()) - before,
        failures=bench.tally.failures,
    )


async def main(*, quick: bool) -> None:
    """Measure a slice for each line of the standard input."""
    scale = QUICK if quick else SLICE
    with tempfile.TemporaryDirectory(prefix="llama_deploy_bench_") as directory:
        async with Stack.running(directory=Path(directory), lease_seconds=scale.lease_seconds) as stack:
            service = await stack.add_services(MAIN_SERVICES, max_concurrent_tasks=IN_FLIGHT)
            async with stack.client() as client:
                bench = Bench(stack=stack, client=client, service=service, scale=scale)
                if not quick:
                    await warm_up(bench)
                print("ready", flush=True)
                while await asyncio.to_thread(sys.stdin.readline):
                    print(json.dumps(asdict(await measure(bench))), flush=True)


if __name__ == "__main__":
    uvloop.run(main(quick="--quick" in sys.argv))
