"""Runs the measurements and reports them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil
import uvloop
from rich.console import Console

from benchmarks.figures import Figures, Report, Tally
from benchmarks.measurements import (
    FULL,
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
from benchmarks.processes import ROOT, PartFailedError, Stack

RESULTS: Final = ROOT / "benchmarks" / "results" / "latest.json"
SHOWN_FAILURES: Final = 5


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
    context = describe_machine(scale)
    for group in (MEASUREMENTS, LONG_MEASUREMENTS):
        chosen = {name: item for name, item in group.items() if name in names}
        if chosen:
            await run_group(chosen, scale=scale, figures=figures, tally=tally, console=console)
    figures.derive()
    return Report(figures=figures, tally=tally, measurements=names, context=context)


def describe_machine(scale: Scale) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "llama_deploy": version("llama-deploy"),
        "workflows": version("llama-index-workflows"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load_before": round(psutil.getloadavg()[0], 2),
        "quick": scale is QUICK,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code."""
    options = _parse(arguments)
    console = Console()
    names = options.only or [*MEASUREMENTS, *(LONG_MEASUREMENTS if options.long else ())]
    report = uvloop.run(run(names, scale=QUICK if options.quick else FULL, console=console))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    show(report, console=console)
    console.print(f"[dim]written to {options.json}[/]")
    return 0 if report.passed else 1


def show(report: Report, *, console: Console) -> None:
    """Print the table, and what went wrong."""
    console.print(report.as_table())
    failures = report.tally.failures
    console.print(f"{report.tally.succeeded:,} tasks ended as they should, {len(failures):,} did not")
    for failure in failures[:SHOWN_FAILURES]:
        console.print(f"[red]{failure}[/]", markup=True, highlight=False)
    if len(failures) > SHOWN_FAILURES:
        console.print(f"[red]... and {len(failures) - SHOWN_FAILURES:,} more in the JSON[/]")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure a system in separate processes on loopback.")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*MEASUREMENTS, *LONG_MEASUREMENTS],
        metavar="NAME",
        help=f"run only this measurement; may be repeated: {', '.join([*MEASUREMENTS, *LONG_MEASUREMENTS])}",
    )
    parser.add_argument("--json", type=Path, default=RESULTS, help="where to write the figures")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of everything: shows that it works, its figures mean little",
    )
    parser.add_argument("--long", action="store_true", help="also what takes more than a minute")
    return parser.parse_args(arguments)
