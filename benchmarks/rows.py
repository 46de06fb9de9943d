"""The comparison of queues and stores: what is known of each pair, and the table of them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from rich import box
from rich.markup import escape
from rich.table import Table

from benchmarks.figures import MISSING, Figures, Tally
from benchmarks.measurements import Scale

SHOWN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "p50 ms": "session_run_p50_ms",
        "p95 ms": "session_run_p95_ms",
        "tasks/s": "tasks_per_second",
        "CPU ms": "cpu_ms",
        "servers": "cpu_servers_ms",
        "events/s": "events_per_second",
        "away s": "queue_away_seconds",
        "last s": "errands_seconds",
    }
)
"""The columns with a figure each."""


@dataclass(slots=True)
class Row:
    """What was found for a queue and a store."""

    queue: str
    store: str
    scale: Scale
    figures: Figures = field(default_factory=Figures)
    tally: Tally = field(default_factory=Tally)
    missing: str = ""
    """Why it could not be measured on this machine."""
    at: str = "start"
    """What is done for it."""
    seconds: float = 0.0

    @property
    def values(self) -> dict[str, float]:
        """The figures that were found, by name."""
        names = [*self.figures.values]
        found = {name: value for name in names if (value := self.figures.value(name)) is not None}
        if "stream_seconds" in found:
            found["events_per_second"] = self.scale.events / found["stream_seconds"]
        if "cpu_ms" in found:
            found["cpu_servers_ms"] = found.get("cpu_queue_ms", 0.0) + found.get("cpu_store_ms", 0.0)
        return found

    @property
    def remark(self) -> str:
        """Why a figure is not there or not right, in a line; empty if all is well."""
        if self.missing:
            return self.missing
        failures = self.tally.failures
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        return failures[0].strip().splitlines()[-1] + more if failures else ""

    @property
    def passed(self) -> bool:
        """Whether nothing went wrong, and all was found that could be."""
        complete = all(name in self.values for name in SHOWN.values())
        return bool(self.missing) or (complete and not self.tally.failures)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "queue": self.queue,
            "store": self.store,
            "passed": self.passed,
            "missing": self.missing or None,
            "seconds": round(self.seconds, 1),
            "tasks": {"succeeded": self.tally.succeeded, "failures": self.tally.failures},
            "figures": self.values,
        }

    def cells(self) -> Iterator[str]:
        """Yield what the table shows of it."""
        values = self.values
        yield from (self.queue, self.store)
        for name in SHOWN.values():
            yield _number(values[name]) if name in values else MISSING
        judged = "errands" in values
        yield f"{values['errands_right']:.0f}/{values['errands']:.0f}" if judged else MISSING


def _number(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1}f}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A finished run."""

    rows: Sequence[Row]
    context: Mapping[str, Any]
    """Where and how it was measured."""

    @property
    def passed(self) -> bool:
        """Whether all rows did; one whose server is not on this machine counts as none."""
        return all(row.passed for row in self.rows)

    @property
    def tally(self) -> Tally:
        """The tasks of all rows."""
        return Tally(
            succeeded=sum(row.tally.succeeded for row in self.rows),
            failures=[
                f"{row.queue} over {row.store}: {failure}"
                for row in self.rows
                for failure in row.tally.failures
            ],
        )

    def as_json(self) -> dict[str, Any]:
        """Return the run as JSON."""
        return {
            "passed": self.passed,
            "context": dict(self.context),
            "rows": [row.as_json() for row in self.rows],
        }

    def as_table(self) -> Table:
        """Return the run for people."""
        table = Table(title="llama_deploy over its queues and stores", box=box.SIMPLE_HEAD)
        for name in ("queue", "store"):
            table.add_column(name, no_wrap=True)
        for name in (*SHOWN, "faults"):
            table.add_column(name, justify="right", no_wrap=True)
        remarked = any(row.remark for row in self.rows)
        if remarked:
            table.add_column("", overflow="fold")
        for row in self.rows:
            table.add_row(*row.cells(), *([escape(row.remark)] if remarked else []))
        return table
