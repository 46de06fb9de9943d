"""How fast streamed events reach their readers: `python -m benchmarks.readers`.

First one reader each for many short streams: from the writing of the first event to its arrival. Then many
readers of one stream, over a connection each, as browsers have them. What they cost is the processor time of
the control plane.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.processes import HOST, Stack, cpu_seconds, memory_mib
from llama_deploy.client import Client

SERVICE: Final = "ticks"
PAUSE_SECONDS: Final = 0.05
"""Between two events: a model streams about twenty tokens a second."""
OPENING_SECONDS: Final = 0.005
"""How long a reader may take to be there, so that all see the first event in time."""
_WRITTEN_AT: Final = re.compile(rb'"written_at": ?([0-9.]+)')


class Reader:
    """Reads a stream, and notes how long each event was under way."""

    def __init__(self, connection: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connection = connection
        self._writer = writer
        self.seconds: list[float] = []

    @classmethod
    async def open(cls, port: int, task_id: str) -> Reader:
        """Ask for the events of a task; return when the answer has begun."""
        connection, writer = await asyncio.open_connection(HOST, port)
        request = f"GET /tasks/{task_id}/events HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        await connection.readuntil(b"\r\n\r\n")
        return cls(connection, writer)

    async def read(self) -> None:
        """Read to the end of the stream."""
        while line := await self._connection.readline():
            if found := _WRITTEN_AT.search(line):
                self.seconds.append(time.monotonic() - float(found[1]))
        self._writer.close()


async def first_events(client: Client, port: int, *, count: int) -> list[float]:
    """Return for each of several streams the seconds from the writing of its first event to its arrival."""
    found: list[float] = []
    for _ in range(count):
        task = await client.submit(SERVICE, events=1, delay=PAUSE_SECONDS, pause=0.0)
        reader = await Reader.open(port, task.task_id)
        await reader.read()
        found += reader.seconds[:1]
        await task.result()
    return found


async def many_readers(stack: Stack, client: Client, port: int, *, count: int, events: int) -> str:
    """Let many readers follow one stream, and describe what it took."""
    delay = PAUSE_SECONDS + OPENING_SECONDS * count
    task = await client.submit(SERVICE, events=events, delay=delay, pause=PAUSE_SECONDS)
    readers = await asyncio.gather(*(Reader.open(port, task.task_id) for _ in range(count)))
    memory, cpu = memory_mib(stack.core.usage), cpu_seconds(stack.core.usage)
    await asyncio.gather(*(reader.read() for reader in readers))
    cpu = cpu_seconds(stack.core.usage) - cpu
    memory = memory_mib(stack.core.usage) - memory
    missing = sum(events - len(reader.seconds) for reader in readers)
    seconds = [each for reader in readers for each in reader.seconds]
    return (
        f"{count} readers of {events} events: {described(seconds)}, {missing} missing, control plane:"
        f" {1e6 * cpu / count / events:.0f} µs an event and reader, {memory:.0f} MiB more"
    )


def described(seconds: Sequence[float]) -> str:
    """Return median, 99th percentile and maximum in milliseconds."""
    ordered = sorted(seconds)
    late = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return f"p50 {1e3 * statistics.median(ordered):.1f}, p99 {1e3 * late:.1f}, max {1e3 * ordered[-1]:.1f} ms"


async def run(*, streams: int, readers: Sequence[int], events: int) -> None:
    """Measure, and print a line for each figure."""
    with tempfile.TemporaryDirectory(prefix="llama_deploy_bench_") as directory:
        async with Stack.running(directory=Path(directory), lease_seconds=5.0) as stack:
            await stack.add_services([SERVICE], max_concurrent_tasks=8)
            async with stack.client() as client:
                await first_events(client, stack.port, count=10)
                found = await first_events(client, stack.port, count=streams)
                print(f"first event of {streams} streams: {described(found)}")
                for count in readers:
                    print(await many_readers(stack, client, stack.port, count=count, events=events))


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--events", type=int, default=100)
    options = parser.parse_args()
    uvloop.run(run(streams=options.streams, readers=options.readers, events=options.events))


if __name__ == "__main__":
    main()
