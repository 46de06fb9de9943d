"""The figures: what each one is, what it should be, and whether it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal

from rich.table import Table

from llama_deploy.errors import LlamaDeployError

MISSING: Final = "-"


@dataclass(frozen=True, slots=True)
class Bound:
    """What a figure should be."""

    relation: Literal["<=", ">="]
    limit: float

    def holds(self, value: float) -> bool:
        """Whether a value is within the bound."""
        return value <= self.limit if self.relation == "<=" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.relation} {self.limit:,g}"


class Summary(Enum):
    """How several rounds become one value."""

    MEDIAN = "median"
    WORST = "worst"
    """The largest, where one bad round is a fault and not noise."""
    LEAST = "least"
    """The smallest, for the same where more is better."""
    SUM = "sum"

    def of(self, values: Sequence[float]) -> float:
        """Summarise."""
        match self:
            case Summary.MEDIAN:
                return statistics.median(values)
            case Summary.WORST:
                return max(values)
            case Summary.LEAST:
                return min(values)
            case Summary.SUM:
                return math.fsum(values)


@dataclass(frozen=True, slots=True)
class Spec:
    """What a figure is."""

    name: str
    measurement: str
    """The measurement that finds it."""
    title: str
    unit: str = ""
    goal: Bound | None = None
    """The goal of this release; missing it fails the run."""
    long_term: Bound | None = None
    """The goal that the design is made for."""
    summary: Summary = Summary.MEDIAN
    optional: bool = False
    """Whether it may be missing after its measurement."""


def _at_most(limit: float) -> Bound:
    return Bound("<=", limit)


def _at_least(limit: float) -> Bound:
    return Bound(">=", limit)


SPECS: Final[tuple[Spec, ...]] = (
    Spec("floor_p50_ms", "floor", "Workflow.run() in process: p50", "ms"),
    Spec("floor_tasks_per_second", "floor", "Workflow.run() in process: 64 in flight", "tasks/s"),
    Spec("floor_cpu_ms", "floor", "Workflow.run() in process: CPU a task", "ms"),
    Spec("session_run_p50_ms", "latency", "session.run: p50", "ms", _at_most(8), _at_most(3)),
    Spec("session_run_p95_ms", "latency", "session.run: p95", "ms"),
    Spec("submit_result_p50_ms", "latency", "client.submit + handle.result: p50", "ms", _at_most(8)),
    Spec("submit_result_p95_ms", "latency", "client.submit + handle.result: p95", "ms"),
    Spec("session_run_p50_ratio", "latency", "session.run: p50 / the floor's", "x", optional=True),
    Spec("tasks_per_second", "throughput", "64 in flight", "tasks/s", _at_least(250), _at_least(1000)),
    Spec("loaded_p50_ms", "throughput", "64 in flight: p50", "ms"),
    Spec("loaded_p95_ms", "throughput", "64 in flight: p95", "ms"),
    Spec("cpu_ms", "throughput", "CPU a task, all processes", "ms", None, _at_most(1.8)),
    Spec("cpu_core_ms", "throughput", "CPU a task: queue and control plane", "ms"),
    Spec("cpu_service_ms", "throughput", "CPU a task: service", "ms"),
    Spec("cpu_client_ms", "throughput", "CPU a task: client", "ms"),
    Spec("cpu_queue_ms", "throughput", "CPU a task: the queue's server", "ms", optional=True),
    Spec("cpu_store_ms", "throughput", "CPU a task: the store's server", "ms", optional=True),
    Spec("tasks_per_second_ratio", "throughput", "64 in flight / the floor's", "x", optional=True),
    Spec("cpu_above_floor_ms", "throughput", "CPU a task above the floor's", "ms", optional=True),
    Spec("first_event_ms", "streaming", "first event of a task that goes on", "ms", None, _at_most(5)),
    Spec("stream_seconds", "streaming", "1,000 events: last", "s", _at_most(0.3), _at_most(0.06)),
    Spec(
        "stream_faults",
        "streaming",
        "1,000 events: missing or out of order",
        "",
        _at_most(0),
        _at_most(0),
        Summary.SUM,
    ),
    Spec("concurrent_seconds", "concurrent", "500 session.run at once: last", "s"),
    Spec(
        "concurrent_errors",
        "concurrent",
        "500 session.run at once: errors",
        "",
        _at_most(0),
        _at_most(0),
        Summary.SUM,
    ),
    Spec("idle_cpu_percent", "idle", "idle: CPU of core and service", "% of a core", None, _at_most(0.2)),
    Spec("idle_core_mib", "idle", "idle: memory of queue and control plane", "MiB"),
    Spec("idle_service_mib", "idle", "idle: memory of a service", "MiB"),
    Spec(
        "idle_single_cpu_percent", "idle", "idle: CPU of llamactl serve", "% of a core", None, _at_most(0.2)
    ),
    Spec("idle_single_mib", "idle", "idle: memory of one llamactl serve", "MiB", None, _at_most(90)),
    Spec(
        "least_share_percent",
        "sharing",
        "two instances: the smaller share",
        "%",
        _at_least(30),
        _at_least(30),
        Summary.LEAST,
    ),
    Spec("echo_by_step_p50_ms", "durability", "one step, durability step: p50", "ms"),
    Spec("echo_by_task_p50_ms", "durability", "one step, durability task: p50", "ms"),
    Spec("chain_by_step_p50_ms", "durability", "20 steps, durability step: p50", "ms"),
    Spec("chain_by_task_p50_ms", "durability", "20 steps, durability task: p50", "ms"),
    Spec("step_ms", "durability", "cost of a step's durability", "ms"),
    Spec(
        "takeover_seconds",
        "takeover",
        "kill -9: last task taken over",
        "s",
        _at_most(7),
        _at_most(3),
        Summary.WORST,
    ),
    Spec("takeover_ended_seconds", "takeover", "kill -9: last task ended", "s", summary=Summary.WORST),
    Spec("errands", "faults", "tasks accepted around the loss of an instance and of the queue", ""),
    Spec("errands_right", "faults", "of them ended once, with their result and all events", ""),
    Spec("errands_moved", "faults", "of them ran in a second instance after the loss of the first", ""),
    Spec("errands_seconds", "faults", "from the loss until the last has ended", "s"),
    Spec("queue_away_seconds", "faults", "from the loss until the queue takes connections again", "s"),
    Spec("early_task_ms", "flatness", "after few tasks: time a task", "ms"),
    Spec("late_task_ms", "flatness", "after many tasks: time a task", "ms"),
    Spec("flatness_ratio", "flatness", "after many tasks / after few", "x", None, _at_most(1.1)),
)


@dataclass(slots=True)
class Figures:
    """What was measured so far: the values of each round, by the figure's name."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """Take the values of one round."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def value(self, name: str) -> float | None:
        """Return a figure, None if it was not measured."""
        spec = next(spec for spec in SPECS if spec.name == name)
        found = self.values.get(name)
        return spec.summary.of(found) if found else None

    def derive(self) -> None:
        """Relate what was measured to the floor of the same run, if that was measured too."""
        self._derive("session_run_p50_ratio", "session_run_p50_ms", "floor_p50_ms")
        self._derive("tasks_per_second_ratio", "tasks_per_second", "floor_tasks_per_second")
        cpu, floor = self.value("cpu_ms"), self.value("floor_cpu_ms")
        if cpu is not None and floor is not None:
            self.values["cpu_above_floor_ms"] = [cpu - floor]

    def _derive(self, name: str, figure: str, floor: str) -> None:
        value, least = self.value(figure), self.value(floor)
        if value is not None and least:
            self.values[name] = [value / least]


@dataclass(slots=True)
class Tally:
    """How many tasks ended as they should, and how the others did."""

    succeeded: int = 0
    failures: list[str] = field(default_factory=list)

    def record(self, answer: object, *, expected: object) -> bool:
        """Take the answer of a task, or the error with which it failed."""
        if isinstance(answer, BaseException):
            if not isinstance(answer, LlamaDeployError):
                raise answer
            self.fail(f"{type(answer).__name__}: {answer}")
        elif answer != expected:
            self.fail(f"answered {answer!r} instead of {expected!r}")
        else:
            self.succeeded += 1
            return True
        return False

    def fail(self, reason: str) -> None:
        """Take note of something that went wrong."""
        self.failures.append(reason)


@dataclass(frozen=True, slots=True)
class Report:
    """A finished run."""

    figures: Figures
    tally: Tally
    measurements: Sequence[str]
    """The measurements that were asked for."""
    context: Mapping[str, Any]
    """Where and how it was measured."""

    def specs(self) -> Iterable[Spec]:
        """Yield the figures that were asked for."""
        for spec in SPECS:
            measured = self.figures.value(spec.name) is not None
            if spec.measurement in self.measurements and (measured or not spec.optional):
                yield spec

    @property
    def passed(self) -> bool:
        """Whether all figures are there, keep the goals of this release, and no task went wrong."""
        return not self.tally.failures and all(self._keeps_goal(spec) is not False for spec in self.specs())

    def _keeps_goal(self, spec: Spec) -> bool | None:
        return self._keeps(spec, spec.goal)

    def _keeps(self, spec: Spec, bound: Bound | None) -> bool | None:
        """Whether a bound is kept; a figure that is missing keeps none; None if there is no bound."""
        value = self.figures.value(spec.name)
        if value is None:
            return False
        return bound.holds(value) if bound is not None else None

    def as_json(self) -> dict[str, Any]:
        """Return the run as JSON."""
        return {
            "passed": self.passed,
            "context": dict(self.context),
            "tasks": {"succeeded": self.tally.succeeded, "failures": self.tally.failures},
            "figures": {spec.name: self._figure_json(spec) for spec in self.specs()},
        }

    def _figure_json(self, spec: Spec) -> dict[str, Any]:
        return {
            "title": spec.title,
            "unit": spec.unit,
            "value": self.figures.value(spec.name),
            "summary": spec.summary.value,
            "rounds": self.figures.values.get(spec.name, []),
            "goal": str(spec.goal) if spec.goal else None,
            "goal_met": self._keeps_goal(spec),
            "long_term_goal": str(spec.long_term) if spec.long_term else None,
            "long_term_goal_met": self._keeps(spec, spec.long_term),
        }

    def as_table(self) -> Table:
        """Return the run for people."""
        table = Table(title="llama_deploy, separate processes on loopback, SQLite synchronous=FULL")
        table.add_column("what")
        for column in ("measured", "goal", "", "long-term", ""):
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        measurement = None
        for spec in self.specs():
            if measurement not in (None, spec.measurement):
                table.add_section()
            measurement = spec.measurement
            table.add_row(spec.title, self._shown(spec), *self._verdict(spec, spec.goal), *self._far(spec))
        return table

    def _shown(self, spec: Spec) -> str:
        value = self.figures.value(spec.name)
        if value is None:
            return "[red]missing[/]"
        digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
        return f"[bold]{value:,.{digits}f}[/] {spec.unit}".rstrip()

    def _verdict(self, spec: Spec, bound: Bound | None) -> tuple[str, str]:
        if bound is None:
            return MISSING, ""
        return str(bound), "[green]pass[/]" if self._keeps(spec, bound) else "[red]FAIL[/]"

    def _far(self, spec: Spec) -> tuple[str, str]:
        if spec.long_term is None:
            return MISSING, ""
        return str(spec.long_term), "[green]met[/]" if self._keeps(
            spec, spec.long_term
        ) else "[yellow]not yet[/]"
