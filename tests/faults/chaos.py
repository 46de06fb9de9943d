"""Rounds of tasks under random faults, and what must hold after each."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from llama_deploy import Client
from llama_deploy.client import TaskHandle
from llama_deploy.errors import LlamaDeployError, TaskFinishedError
from llama_deploy.testing.processes import Program
from llama_deploy.types import TaskEvent
from tests.faults.conftest import ROOT, System, errors_in
from tests.faults.ledger import EXPECTED, Faults, Ledger, takeover
from tests.faults.programs.flows import Answer
from tests.faults.stream_judge import Item, events_of, stream_violations

LEASE_SECONDS: Final = 2.0
BATCH: Final = (
    "chain",
    "chain",
    "chain",
    "chain",
    "human",
    "human",
    "human",
    "volatile",
    "flaky",
    "flaky",
    "fan",
    "collect",
)
RECONNECT_SECONDS: Final = 5.0
"""The longest pause between two tries to reach a queue or a control plane that was away."""
ROUND_SECONDS: Final = 180.0
"""In what time all tasks of a round must have ended; most rounds take less than 10 s."""
REPORTS: Final = ROOT / "build" / "faults"
"""Where the reports of violations are kept."""


class Part(Protocol):
    """What can be killed and started again."""

    def kill(self) -> None: ...

    def start(self) -> object: ...


class Parts(Protocol):
    """The processes of a system, and what can be done to them."""

    faults: tuple[tuple[str, ...], ...]
    """What is done together in a round."""
    control_planes: list[Program]

    @property
    def programs(self) -> list[Program]:
        """All whose output is looked at."""

    async def are_there(self, client: Client) -> None:
        """Wait until all parts work."""

    async def strike(self, what: Sequence[str], faults: Faults, chance: random.Random) -> None:
        """Do one of `faults`, note what was done, and return when all parts work again.

        Raises:
            ViolationError: A process has not behaved as it must.
        """


class ViolationError(AssertionError):
    """Something happened that must not happen."""


@dataclass(slots=True)
class Figures:
    """What is told at the end."""

    rounds: int = 0
    tasks: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    takeovers: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds from the death of a process to the first step of its task elsewhere, by what was done."""
    longest_round: float = 0.0
    """In seconds."""
    slowest_answer: float = 0.0
    """Seconds that the control plane took for something small while it was there."""

    def __str__(self) -> str:
        done = ", ".join(f"{name}: {count}" for name, count in sorted(self.faults.items()))
        slowest = f"longest round {self.longest_round:.1f} s, slowest answer {self.slowest_answer:.2f} s"
        takeovers = [f"takeover after {name}: {percentiles(each)}" for name, each in self.takeovers.items()]
        head = f"{self.rounds} rounds without a violation, {self.tasks} tasks; {slowest}"
        return "\n  ".join([head, f"rounds: {done}", *sorted(takeovers)])


def percentiles(seconds: Sequence[float]) -> str:
    """Return the median and the 99th percentile of durations as text."""
    if not seconds:
        return "never measured"
    p50, p99 = quantile(seconds, 0.5), quantile(seconds, 0.99)
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s ({len(seconds)} measured)"


def quantile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that is not exceeded by this part of all."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


@dataclass(slots=True)
class Job:
    """One task of a round."""

    flow: str
    name: str
    early_answer: bool
    handle: TaskHandle | None = None
    live: list[Item] = field(default_factory=list)
    """What a reader has seen who was there from the start."""


class Chaos:
    """Rounds of tasks, in each of which something is done to the processes of a system.

    Args:
        system: Where the processes are.
        parts: The processes.
        seed: Of all that is random.
        repeat: The command that does the same again, for the report of a violation.
    """

    def __init__(self, system: System, parts: Parts, *, seed: int, repeat: str = "") -> None:
        self.system = system
        self.parts = parts
        self.seed = seed
        self.repeat = repeat
        self.figures = Figures()
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._ledger = Ledger(system.ledger_path)
        self._plan: list[tuple[str, ...]] = []
        self._printed: dict[Path, int] = {}
        """How much each program had printed before the round."""

    async def run(self, *, seconds: float, most_rounds: int = 100_000) -> Figures:
        """Go through rounds for a time.

        Raises:
            ViolationError: Something did not hold. The text has the seed, all that was seen in the round, and
                how to repeat it; it is also in a file in `REPORTS`.
        """
        async with self.system.client() as client:
            await self.parts.are_there(client)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and self.figures.rounds < most_rounds:
                await self._round(client)
        return self.figures

    async def _round(self, client: Client) -> None:
        number = self.figures.rounds
        if not self._plan:
            self._plan = self._random.sample(self.parts.faults, len(self.parts.faults))
        what = self._plan.pop()
        flows = self._random.sample(BATCH, len(BATCH))
        jobs = [
            Job(flow, f"r{number}-{n}-{flow}", self._random.random() < 0.5) for n, flow in enumerate(flows)
        ]
        faults = Faults()
        self._ledger.clear()
        self._printed = {each.output: len(each.text) for each in self.parts.programs}
        begun = time.monotonic()
        try:
            async with (
                asyncio.timeout(ROUND_SECONDS),
                asking(client, faults),
                asyncio.TaskGroup() as group,
            ):
                for job in jobs:
                    group.create_task(self._accompany(client, job))
                # Any moment may be the worst one, so this waits for no condition.
                await asyncio.sleep(self._random.uniform(0.0, 2.0))
                await self.parts.strike(what, faults, self._random)
            wrong = [each for job in jobs for each in self._violations(job, faults)]
            for job in jobs:
                wrong += await self._stream_violations(job, faults)
            wrong += self._log_violations()
        except Exception as exc:  # noqa: BLE001 - whatever it was, all is told that was seen
            seen = ["".join(traceback.format_exception(exc)), *await self._states(client, jobs)]
            raise ViolationError(self._report(what, faults, seen)) from None
        if wrong:
            raise ViolationError(self._report(what, faults, wrong))
        self._count(what, jobs, faults, seconds=time.monotonic() - begun)

    def _count(self, what: Sequence[str], jobs: Sequence[Job], faults: Faults, *, seconds: float) -> None:
        figures = self.figures
        figures.rounds += 1
        figures.longest_round = max(figures.longest_round, seconds)
        answers = [until - since for since, until in faults.answers if faults.all_was_well(since, until)]
        figures.slowest_answer = max([figures.slowest_answer, *answers])
        figures.tasks += len(jobs)
        figures.faults[" + ".join(what)] += 1
        if not faults.outages:
            lines = self._ledger.lines()
            for job in jobs:
                own = [line for line in lines if line.task == job.name]
                for death in faults.deaths:
                    figures.takeovers[" + ".join(what)] += takeover(own, death)

    # -- the tasks

    async def _accompany(self, client: Client, job: Job) -> None:
        """Submit a task, read its stream as it comes, answer when it asks, and look at its result."""
        job.handle = handle = await client.submit(
            job.flow, max_attempts=10, name=job.name, seconds=round(self._random.uniform(0.02, 0.4), 2)
        )
        if job.flow == "human" and job.early_answer:
            await self._answer(handle)
        async for item in handle.events(attempts=True):
            job.live.append(item)
            if isinstance(item, TaskEvent) and item.type == "Ask":
                await self._answer(handle)
        result = await handle.result()
        if result != f"{job.name}: {EXPECTED[job.flow]}":
            raise ViolationError(f"the result of {job.name} is {result!r}")

    @staticmethod
    async def _answer(handle: TaskHandle) -> None:
        # Two people press the button, or one of them twice.
        with contextlib.suppress(TaskFinishedError):
            await handle.send(Answer(text="yes"), idempotency_key="the answer")
            await handle.send(Answer(text="again"), idempotency_key="the answer")

    # -- what must hold

    def _violations(self, job: Job, faults: Faults) -> list[str]:
        events = [event for event in events_of(job.live) if event.type == "Progress"]
        streamed = {(event.data["step"], event.data["pid"]) for event in events}
        return self._ledger.violations(job.flow, job.name, faults, streamed=streamed)

    async def _stream_violations(self, job: Job, faults: Faults) -> list[str]:
        """Return what is wrong with a task's stream, of which another reader reads all when it is over."""
        assert job.handle is not None
        later = [item async for item in job.handle.events(attempts=True)]
        wrong = stream_violations(job.flow, job.live, later, faults)
        view = await job.handle.info()
        # In an outage the answer to a claim may be lost: that attempt never begins, and another is due.
        explained = len(faults.deaths) + len(faults.drained) + len(faults.outages)
        if view.attempt > 1 + explained + (job.flow in {"human", "volatile"}):
            wrong.append(f"it took {view.attempt} attempts")
        return [f"task {job.name} ({job.handle.task_id}): {each}" for each in wrong]

    def _log_violations(self) -> list[str]:
        """Refusals are told once for each attempt, by each control plane; nothing fails unforeseen."""
        texts = [each.text for each in self.parts.control_planes]
        lives = [life for text in texts for life in re.split(r"control plane +(?:on )?http", text)]
        wrong = []
        for life in lives:
            refused = re.findall(
                r"WARNING[: ]\S+rejection_log: ?rejected .*? of (attempt \d+ of task [\w-]+)", life
            )
            wrong += [f"refused {n} times at WARNING: {key}" for key, n in Counter(refused).items() if n > 1]
        for program in self.parts.programs:
            # A step that fails on purpose is no fault of the system.
            found = errors_in(program.text)
            wrong += [f"{program.output.name}: {line}" for line in found if "fails on purpose" not in line]
        return wrong

    async def _states(self, client: Client, jobs: Sequence[Job]) -> list[str]:
        """Return what the control plane says of each task and each instance, as far as it answers."""
        seen = []
        for job in jobs:
            try:
                async with asyncio.timeout(5):
                    state = await job.handle.info() if job.handle else "not submitted"
            except (LlamaDeployError, TimeoutError) as exc:
                state = f"{type(exc).__name__}: {exc}"
            seen.append(f"task {job.name}: {state}; its stream so far: {job.live}")
        with contextlib.suppress(LlamaDeployError, TimeoutError):
            async with asyncio.timeout(5):
                seen += [f"service {each}" for each in await client.core.services.list()]
        return seen

    def _report(self, what: Sequence[str], faults: Faults, wrong: Sequence[str]) -> str:
        """Return all that was seen in the round, and keep it in a file too."""
        number = self.figures.rounds
        file = REPORTS / f"seed-{self.seed}-round-{number}.txt"
        logs = [
            f"--- {each.output.name}, in this round\n{each.text[self._printed.get(each.output, 0) :]}"
            for each in self.parts.programs
        ]
        text = "\n".join(
            [
                f"seed {self.seed}, round {number}, {' + '.join(what)}; this text is in {file}",
                f"repeat it with: {self.repeat}" if self.repeat else "",
                f"so far: {self.figures}",
                *wrong,
                "--- what was done",
                *map(str, (*faults.deaths, f"drained: {faults.drained}", f"outages: {faults.outages}")),
                "--- the ledger",
                *map(str, self._ledger.lines()),
                *logs,
            ]
        )
        REPORTS.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return text


@contextlib.asynccontextmanager
async def asking(client: Client, faults: Faults) -> AsyncIterator[None]:
    """Ask the control plane for something small all the time, and note how long that takes."""

    async def ask() -> None:
        while True:
            since = time.monotonic()
            with contextlib.suppress(LlamaDeployError):
                await client.core.services.list()
            faults.answers.append((since, time.monotonic()))
            await asyncio.sleep(0.1)

    task = asyncio.create_task(ask())
    try:
        yield
    finally:
        task.cancel()
