"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop
from rich.console import Console

from benchmarks import against
from benchmarks.figures import Report
from benchmarks.measurements import FULL, LONG_MEASUREMENTS, MEASUREMENTS, QUICK
from benchmarks.processes import ROOT
from benchmarks.suite import run

if TYPE_CHECKING:
    from benchmarks.rows import Comparison

RESULTS: Final = ROOT / "benchmarks" / "results"
SHOWN_FAILURES: Final = 5
COMPARISON_WIDTH: Final = 150
"""Columns of a comparison that goes to a file or a pipe."""
ALL: Final = "all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    console = Console()
    if (options.broker or options.against) and not console.is_terminal:
        console = Console(width=COMPARISON_WIDTH)
    report: Report | Comparison
    if options.against:
        return _compare_revisions(parser, options, console=console)
    if options.broker:
        report = _compare(parser, options, console=console)
        path = options.json or RESULTS / "backends.json"
    else:
        if options.store:
            parser.error("--store goes with --broker")
        names = options.only or [*MEASUREMENTS, *(LONG_MEASUREMENTS if options.long else ())]
        report = uvloop.run(run(names, scale=QUICK if options.quick else FULL, console=console))
        path = options.json or RESULTS / "latest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    show(report, console=console)
    console.print(f"[dim]written to {path}[/]")
    return 0 if report.passed else 1


def _compare_revisions(
    parser: argparse.ArgumentParser, options: argparse.Namespace, *, console: Console
) -> int:
    """Compare this checkout with another revision; returns the exit code."""
    if options.only or options.long or options.broker or options.store:
        parser.error("--against goes with --pairs, --quick and --json only")
    try:
        pairs = against.compare(options.against, pairs=options.pairs, quick=options.quick, console=console)
    except ValueError as exc:
        parser.error(str(exc))
    path = options.json or RESULTS / "against.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(pairs.as_json(), indent=2) + "\n")
    console.print(pairs.as_table())
    for failure in pairs.failures[:SHOWN_FAILURES]:
        console.print(failure, style="red", markup=False, highlight=False)
    console.print(f"[dim]written to {path}[/]")
    return 0 if pairs.passed else 1


def _compare(parser: argparse.ArgumentParser, options: argparse.Namespace, *, console: Console) -> Comparison:
    """Run the comparison."""
    # What the servers of the tests need is not to be in the client of the other measurements.
    from benchmarks import comparison  # noqa: PLC0415
    from benchmarks.servers import QUEUES, STORES  # noqa: PLC0415

    if options.only or options.long:
        parser.error("--only and --long do not go with --broker")
    chosen: list[list[str]] = []
    for name, known in ((options.broker, QUEUES), (options.store or ALL, STORES)):
        if name not in (ALL, *known):
            parser.error(f"{name!r} is none of: {', '.join((ALL, *known))}")
        chosen.append([*known] if name == ALL else [name])
    return uvloop.run(comparison.run(*chosen, quick=options.quick, console=console))


def show(report: Report | Comparison, *, console: Console) -> None:
    """Print the table, and what went wrong."""
    console.print(report.as_table())
    failures = report.tally.failures
    console.print(f"{report.tally.succeeded:,} tasks ended as they should, {len(failures):,} did not")
    for failure in failures[:SHOWN_FAILURES]:
        console.print(failure, style="red", markup=False, highlight=False)
    if len(failures) > SHOWN_FAILURES:
        console.print(f"[red]... and {len(failures) - SHOWN_FAILURES:,} more in the JSON[/]")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure a system in separate processes on loopback.")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*MEASUREMENTS, *LONG_MEASUREMENTS],
        metavar="NAME",
        help=f"run only this measurement; may be repeated: {', '.join([*MEASUREMENTS, *LONG_MEASUREMENTS])}",
    )
    parser.add_argument(
        "--broker",
        metavar="NAME",
        help="instead, measure this queue over each store; 'all': every queue",
    )
    parser.add_argument("--store", metavar="NAME", help="with --broker: over this store only")
    parser.add_argument(
        "--against",
        metavar="REVISION",
        help="instead, compare this checkout with another git revision, in alternating pairs of runs",
    )
    parser.add_argument("--pairs", type=int, default=10, help="with --against: how many; default 10")
    parser.add_argument("--json", type=Path, help=f"where to write the figures, instead of {RESULTS}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of everything: shows that it works, its figures mean little",
    )
    parser.add_argument("--long", action="store_true", help="also what takes more than a minute")
    return parser
