"""Runs the measurements of one system."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.figures import Figures, Report, Tally
from benchmarks.machine import describe_machine
from benchmarks.measurements import (
    IN_FLIGHT,
    LONG_MEASUREMENTS,
    MAIN_SERVICES,
    MEASUREMENTS,
    QUICK,
    Bench,
    Measurement,
    Scale,
    warm_up,
)
from benchmarks.processes import PartFailedError, Stack


async def run_group(
    measurements: Mapping[str, Measurement],
    *,
    scale: Scale,
    figures: Figures,
    tally: Tally,
    console: Console,
) -> None:
    """Run measurements against one fresh system."""
    with tempfile.TemporaryDirectory(prefix="llama_deploy_bench_") as directory:
        async with Stack.running(directory=Path(directory), lease_seconds=scale.lease_seconds) as stack:
            service = await stack.add_services(MAIN_SERVICES, max_concurrent_tasks=IN_FLIGHT)
            async with stack.client() as client:
                bench = Bench(
                    stack=stack, client=client, service=service, scale=scale, figures=figures, tally=tally
                )
                await warm_up(bench)
                for number in range(scale.max_rounds):
                    for name, measurement in measurements.items():
                        if number < measurement.rounds:
                            await run_one(name, measurement, bench=bench, console=console)


async def run_one(name: str, measurement: Measurement, *, bench: Bench, console: Console) -> None:
    """Run one measurement; what goes wrong in it is kept for the report."""
    started = time.perf_counter()
    failed = len(bench.tally.failures)
    try:
        await measurement.run(bench)
    except (PartFailedError, TimeoutError, psutil.NoSuchProcess) as exc:
        bench.tally.fail(f"{type(exc).__name__}: {exc}")
    wrong = len(bench.tally.failures) - failed
    verdict = f"[red]{wrong} failures[/]" if wrong else "ok"
    console.print(f"{name:<12} {time.perf_counter() - started:5.1f} s  {verdict}")


async def run(names: Sequence[str], *, scale: Scale, console: Console) -> Report:
    """Run the named measurements and return what they found."""
    figures, tally = Figures(), Tally()
    context = describe_machine(quick=scale is QUICK)
    for group in (MEASUREMENTS, LONG_MEASUREMENTS):
        chosen = {name: item for name, item in group.items() if name in names}
        if chosen:
            await run_group(chosen, scale=scale, figures=figures, tally=tally, console=console)
    figures.derive()
    return Report(figures=figures, tally=tally, measurements=names, context=context)
