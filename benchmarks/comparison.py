"""Measures each queue over each store, and whether tasks outlive an instance and the queue."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from tests.servers.brokers import Broker

from benchmarks.faults import RUNNER, RUNNERS, RUNS_AT_A_TIME, faults
from benchmarks.machine import describe_machine
from benchmarks.measurements import (
    IN_FLIGHT,
    MAIN_SERVICES,
    QUICK,
    Bench,
    Scale,
    latency,
    streaming,
    throughput,
    warm_up,
)
from benchmarks.processes import Backends, PartFailedError, Server, Stack
from benchmarks.rows import Comparison, Row
from benchmarks.servers import QUEUES, STORES, ServerMissingError, opened
from llama_deploy.errors import LlamaDeployError

ROW: Final = Scale(first_events=3, burst=500, lease_seconds=2.0, most_seconds=4.0)
"""How much is measured for a row."""
ROW_SECONDS: Final = 150.0
"""A row that takes longer has failed."""
SETTINGS: Final[Mapping[str, str]] = {"CONTROL_PLANE_REDISPATCH_SECONDS": "2"}
"""So that a queue that has lost everything costs seconds, not a quarter of a minute."""
MEASUREMENTS: Final = (warm_up, latency, throughput, streaming, streaming, streaming)


async def run(queues: Sequence[str], stores: Sequence[str], *, quick: bool, console: Console) -> Comparison:
    """Measure the named queues over the named stores, one pair after the other."""
    task = asyncio.current_task()
    assert task is not None
    # The servers do not end by themselves.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    context = describe_machine(quick=quick)
    rows = [Row(queue, store, scale=QUICK if quick else ROW) for queue in queues for store in stores]
    for row in rows:
        await measure(row)
        verdict = "missing" if row.missing else "ok" if row.passed else "[red]failed[/]"
        console.print(f"{row.queue:<9} {row.store:<11} {row.seconds:5.1f} s  {verdict}")
    return Comparison(rows=rows, context=context)


async def measure(row: Row) -> None:
    """Start the servers and a system over them, measure, and kill; what goes wrong is kept in the row."""
    with tempfile.TemporaryDirectory(prefix="llama_deploy_bench_", ignore_cleanup_errors=True) as directory:
        folder = Path(directory)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(ROW_SECONDS), AsyncExitStack() as resources:
                queue, queue_server = await opened(resources, QUEUES[row.queue].make, folder)
                store_uri, store_server = await opened(resources, STORES[row.store], folder)
                backends = Backends(queue.url, store_uri, {**SETTINGS, **QUEUES[row.queue].environment})
                servers = {"queue": queue_server, "store": store_server}
                await measure_system(row, backends, queue=queue, servers=servers, folder=folder)
        except ServerMissingError as exc:
            row.missing = str(exc)
        except (PartFailedError, LlamaDeployError, RuntimeError, OSError, psutil.NoSuchProcess) as exc:
            row.tally.fail(f"{type(exc).__name__}: {str(exc) or 'it takes too long'} (at: {row.at})")
        row.seconds = time.perf_counter() - started


async def measure_system(
    row: Row, backends: Backends, *, queue: Broker, servers: Mapping[str, Server], folder: Path
) -> None:
    """Measure a system over servers that run."""
    running = Stack.running(directory=folder, lease_seconds=row.scale.lease_seconds, backends=backends)
    async with running as stack:
        # All now: RabbitMQ needs some seconds until it knows a new queue even after it was killed.
        service, *runners = await asyncio.gather(
            stack.add_services(MAIN_SERVICES, max_concurrent_tasks=IN_FLIGHT),
            *(stack.add_services([RUNNER], max_concurrent_tasks=RUNS_AT_A_TIME) for _ in range(RUNNERS)),
        )
        async with stack.client() as client:
            bench = Bench(
                stack=stack,
                client=client,
                service=service,
                scale=row.scale,
                figures=row.figures,
                tally=row.tally,
                servers={name: server for name, server in servers.items() if server.processes},
            )
            for measurement in MEASUREMENTS:
                row.at = measurement.__name__
                await measurement(bench)
            if row.figures.value("stream_faults"):
                row.tally.fail("streamed events are missing or out of order")
            row.at = "faults"
            await faults(bench, queue=queue, runners=runners)
            row.at = "stop"
