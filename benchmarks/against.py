"""Compares this checkout with another revision: alternating pairs of runs, and a bound for their ratio."""

from __future__ import annotations

import io
import json
import math
import os
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.processes import ROOT

TREES: Final = ROOT / "build" / "against"
MEASUREMENTS: Final = ("latency", "throughput")
CONFIDENCE: Final = 0.95
MIN_PAIRS: Final = 5
"""Fewer pairs give no bound with this confidence."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How much worse a figure may be."""

    figure: str
    title: str
    better: Literal["less", "more"]
    max_ratio: float
    """The upper bound of the median ratio may not exceed this; above 1 is worse."""

    def ratio(self, old: float, new: float) -> float:
        """Return how much worse the new value is: 1.1 is a tenth worse, whichever direction is better."""
        return new / old if self.better == "less" else old / new


LIMITS: Final = (
    Limit("cpu_ms", "CPU per task, all processes", "less", 1.03),
    Limit("session_run_p50_ms", "session.run: p50", "less", 1.10),
    Limit("submit_result_p50_ms", "client.submit + handle.result: p50", "less", 1.10),
    Limit("tasks_per_second", "64 in flight: throughput", "more", 1.10),
)


@dataclass(slots=True)
class Pairs:
    """What was measured: for each figure, the values of both sides, pair by pair."""

    revision: str
    values: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def ratios(self, limit: Limit) -> list[float]:
        """Return the ratio of each pair."""
        return [limit.ratio(old, new) for old, new in self.values.get(limit.figure, ())]

    @property
    def passed(self) -> bool:
        """Whether no run failed and each bound is within its limit."""
        return not self.failures and all(
            upper_bound(self.ratios(limit)) <= limit.max_ratio for limit in LIMITS
        )

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as JSON."""
        figures = {
            limit.figure: {
                "pairs": self.values.get(limit.figure, []),
                "median_ratio": statistics.median(ratios),
                "upper_bound": upper_bound(ratios),
                "max_ratio": limit.max_ratio,
            }
            for limit in LIMITS
            if (ratios := self.ratios(limit))
        }
        return {
            "passed": self.passed,
            "revision": self.revision,
            "figures": figures,
            "failures": self.failures,
        }

    def as_table(self) -> Table:
        """Return the comparison for people."""
        table = Table(title=f"this checkout against {self.revision}; a ratio above 1 is worse")
        table.add_column("figure")
        for column in ("before", "now", "median ratio", "upper 95 % bound", "limit", ""):
            table.add_column(column, justify="right", no_wrap=True)
        for limit in LIMITS:
            if not (ratios := self.ratios(limit)):
                table.add_row(limit.title, *["-"] * 4, f"{limit.max_ratio:.2f}", "[red]missing[/]")
                continue
            before, now = zip(*self.values[limit.figure], strict=True)
            bound = upper_bound(ratios)
            table.add_row(
                limit.title,
                f"{statistics.median(before):,.2f}",
                f"{statistics.median(now):,.2f}",
                f"{statistics.median(ratios):.3f}",
                f"{bound:.3f}",
                f"{limit.max_ratio:.2f}",
                "[green]pass[/]" if bound <= limit.max_ratio else "[red]FAIL[/]",
            )
        return table


def upper_bound(ratios: Sequence[float]) -> float:
    """Return the upper 95 % confidence bound of the median, infinite for too few values.

    It is the smallest value of the sample that the median exceeds with a probability of at most 5 %. No
    distribution is assumed: each value is above the median as often as below it, so the number of
    values below the median is binomial with p = 1/2.
    """
    count = len(ratios)
    probability = 0.0
    for index, ratio in enumerate(sorted(ratios)):
        probability += math.comb(count, index) / 2**count
        if probability >= CONFIDENCE:
            return ratio
    return math.inf


def compare(revision: str, *, pairs: int, quick: bool, console: Console) -> Pairs:
    """Measure the other revision and this checkout in turns.

    Which of them comes first alternates, so that a machine that slows down favours neither.

    Raises:
        ValueError: There are too few pairs for a bound, or git does not know the revision.
    """
    if pairs < MIN_PAIRS:
        raise ValueError(f"{pairs} pairs give no {CONFIDENCE:.0%} bound; measure at least {MIN_PAIRS}")
    commit = _git("rev-parse", "--verify", "--short", f"{revision}^{{commit}}").decode().strip()
    trees = {"before": _unpack(commit), "now": ROOT}
    found = Pairs(commit)
    for number in range(pairs):
        order = ("before", "now") if number % 2 == 0 else ("now", "before")
        runs = {side: _run(trees[side], quick=quick, failures=found.failures) for side in order}
        for limit in LIMITS:
            old, new = (runs[side].get(limit.figure) for side in ("before", "now"))
            if old and new:
                found.values.setdefault(limit.figure, []).append((old, new))
        latest = ", ".join(
            f"{item.figure} {item.ratio(*found.values[item.figure][-1]):.3f}"
            for item in LIMITS
            if item.figure in found.values
        )
        console.print(f"pair {number + 1} of {pairs}: {latest}")
    return found


def _run(tree: Path, *, quick: bool, failures: list[str]) -> dict[str, float]:
    """Run the benchmark of a tree with that tree's code, and return its figures."""
    report = TREES / "run.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, str(tree / "benchmarks" / "run.py"), f"--json={report}"]
    command += [f"--only={name}" for name in MEASUREMENTS] + ["--quick"] * quick
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tree), str(tree / "src")))}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if not report.exists():
        failures.append(f"{tree}: the benchmark ended with {done.returncode}: {done.stderr[-500:]}")
        return {}
    content = json.loads(report.read_text(encoding="utf-8"))
    failures.extend(f"{tree}: {failure}" for failure in content["tasks"]["failures"])
    return {name: item["value"] for name, item in content["figures"].items() if item["value"] is not None}


def _unpack(commit: str) -> Path:
    """Return a folder with the files of a commit."""
    folder = TREES / commit
    if not folder.exists():
        with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", commit))) as archive:
            archive.extractall(folder, filter="data")
    return folder


def _git(*arguments: str) -> bytes:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"git {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
