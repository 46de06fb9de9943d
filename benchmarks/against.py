"""Compares this checkout with another revision: pairs of runs that take turns, and a bound for their ratio.

Both systems of a pair run at the same time, but only one has work. They take turns about every second, so
that a slow phase of the machine affects both. Both are measured by the benchmarks of this checkout.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.processes import ROOT
from benchmarks.side import Slice

TREES: Final = ROOT / "build" / "against"
SLICES: Final = 8
"""How often each side of a pair is measured."""
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

    Which of them comes first alternates. Each pair has new processes, because how the memory of a process is
    laid out changes its speed.

    Raises:
        ValueError: There are too few pairs for a bound, or git does not know the revision.
    """
    if pairs < MIN_PAIRS:
        raise ValueError(f"{pairs} pairs give no {CONFIDENCE:.0%} bound; measure at least {MIN_PAIRS}")
    commit = _git("rev-parse", "--verify", "--short", f"{revision}^{{commit}}").decode().strip()
    trees = {"before": _unpack(commit), "now": ROOT}
    found = Pairs(commit)
    for number in range(pairs):
        try:
            before, now = _run_pair(trees, quick=quick)
        except SideFailedError as exc:
            found.failures.append(str(exc))
            continue
        found.failures += [*before.failures, *now.failures]
        old, new = before.figures(), now.figures()
        for limit in LIMITS:
            found.values.setdefault(limit.figure, []).append((old[limit.figure], new[limit.figure]))
        latest = ", ".join(f"{item.figure} {found.ratios(item)[-1]:.3f}" for item in LIMITS)
        console.print(f"pair {number + 1} of {pairs}: {latest}")
    return found


class SideFailedError(Exception):
    """The process that measures one side has ended too early."""


class Side:
    """The system of one revision, and the client that measures it, which is a process of its own."""

    def __init__(self, tree: Path, *, quick: bool) -> None:
        self._tree = tree
        self._slices: list[Slice] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.side", *["--quick"] * quick],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tree / "src")))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def failures(self) -> list[str]:
        """What went wrong in the slices."""
        return [f"{self._tree}: {failure}" for item in self._slices for failure in item.failures]

    def wait_until_ready(self) -> None:
        """Wait until the system has started and is warm."""
        self._answer()

    def measure(self) -> None:
        """Measure one slice."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and so has its output
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        self._slices.append(Slice(**json.loads(self._answer())))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line
        raise SideFailedError(f"{self._tree}: the benchmark ended with {self._process.wait()}")

    def figures(self) -> dict[str, float]:
        """Return the figures of all slices together."""
        tasks = sum(item.tasks for item in self._slices)

        def p50(name: str) -> float:
            return 1000 * statistics.median(itertools.chain(*(item.latencies[name] for item in self._slices)))

        return {
            "cpu_ms": 1000 * sum(item.cpu_seconds for item in self._slices) / tasks,
            "session_run_p50_ms": p50("session_run"),
            "submit_result_p50_ms": p50("submit_result"),
            "tasks_per_second": tasks / sum(item.seconds for item in self._slices),
        }

    def stop(self) -> None:
        """End it, and wait for its end."""
        self._process.communicate()


def _run_pair(trees: Mapping[str, Path], *, quick: bool) -> tuple[Side, Side]:
    """Measure both sides in turns."""
    before, now = (Side(trees[name], quick=quick) for name in ("before", "now"))
    try:
        before.wait_until_ready()
        now.wait_until_ready()
        for number in range(1 if quick else SLICES):
            for side in (before, now) if number % 2 == 0 else (now, before):
                side.measure()
    finally:
        before.stop()
        now.stop()
    return before, now


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
