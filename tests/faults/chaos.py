"""Rounds of tasks under random faults, and what must hold after each."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Protocol

from llama_deploy import Client
from llama_deploy.client import TaskHandle
from llama_deploy.errors import LlamaDeployError, TaskFinishedError
from llama_deploy.testing.processes import Program
from llama_deploy.testing.tcp_proxy import TcpProxy
from llama_deploy.types import TaskEvent
from tests.faults.conftest import System, errors_in
from tests.faults.ledger import EXPECTED, Death, Faults, Ledger, takeover
from tests.faults.programs.flows import Answer
from tests.servers.brokers import Broker
from tests.servers.postgresql import PostgreSQLServer

LEASE_SECONDS: Final = 2.0
BATCH: Final = (
    "chain",
    "chain",
    "chain",
    "chain",
    "human",
    "human",
    "human",
    "flaky",
    "flaky",
    "fan",
    "collect",
)
FAULTS: Final[tuple[tuple[str, ...], ...]] = (
    ("service",),
    ("control plane",),
    ("queue",),
    ("pause",),
    ("service", "control plane", "queue", "other service"),
    ("service", "other service"),
    ("service", "queue"),
    ("service", "control plane"),
    ("control plane", "queue"),
    ("pause", "control plane"),
)
"""What is killed together. `pause` stops a service beyond its lease and lets it go on."""
FAULTS_OF_A_DATABASE: Final[tuple[tuple[str, ...], ...]] = (
    ("database",),
    ("other control plane",),
    ("database", "service"),
    ("database", "queue"),
    ("control plane", "other control plane"),
    ("frozen control plane",),
)
"""`frozen control plane`: the other one is stopped beyond the lease, perhaps in a transaction."""
RECONNECT_SECONDS: Final = 5.0
"""The longest pause between two tries to reach a queue or a control plane that was away."""
ROUND_SECONDS: Final = 90.0
"""In what time all tasks of a round must have ended."""


class Part(Protocol):
    """What can be killed and started again."""

    def kill(self) -> None: ...

    def start(self) -> object: ...


class ViolationError(AssertionError):
    """Something happened that must not happen."""


@dataclass(slots=True)
class Figures:
    """What is told at the end."""

    rounds: int = 0
    tasks: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    takeovers: list[float] = field(default_factory=list)
    """Seconds from the death of a service alone to the first step of its task elsewhere."""
    longest_round: float = 0.0
    """In seconds."""
    slowest_answer: float = 0.0
    """Seconds that the control plane took for something small while it was there."""

    def __str__(self) -> str:
        done = ", ".join(f"{name}: {count}" for name, count in sorted(self.faults.items()))
        slowest = f"longest round {self.longest_round:.1f} s, slowest answer {self.slowest_answer:.2f} s"
        takeovers = percentiles(self.takeovers)
        return f"{self.rounds} rounds, {self.tasks} tasks; {done}; {slowest}; takeover {takeovers}"


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
    live: list[TaskEvent] = field(default_factory=list)
    """What a reader has seen who was there from the start."""


class Chaos:
    """A system under faults: queue, control plane and two services, each in a process of its own.

    Args:
        system: Starts the processes.
        seed: Of all that is random.
        broker: What the queue is. None: a simple queue in a process of its own.
        database: What the store is; it is killed too. None: SQLite.
        balancer: Stands before two control planes over the database, on the ports to which it passes. None:
            there is one control plane.
    """

    def __init__(
        self,
        system: System,
        *,
        seed: int,
        broker: Broker | None = None,
        database: PostgreSQLServer | None = None,
        balancer: TcpProxy | None = None,
    ) -> None:
        self.system = system
        self.seed = seed
        self.figures = Figures()
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._ledger = Ledger(system.ledger_path)
        self._plan: list[tuple[str, ...]] = []
        self._faults = FAULTS if database is None else (*FAULTS, *FAULTS_OF_A_DATABASE)
        system.env["CONTROL_PLANE_LEASE_SECONDS"] = str(LEASE_SECONDS)
        system.env["LLAMA_DEPLOY_WF_SERVICE_IDLE_TIMEOUT"] = "0.3"
        self._balancer = balancer
        self._ports = balancer.target_ports if balancer else [system.control_plane_port]
        self._control_planes = [
            system.start("core.py", "control_plane", CONTROL_PLANE_PORT=str(port)) for port in self._ports
        ]
        self._parts: dict[str, Part] = {
            "queue": broker or system.start("core.py", "message_queue"),
            "control plane": self._control_planes[0],
        }
        self._services = [system.module("hosts"), system.module("hosts")]
        if database is not None:
            self._parts |= {"database": database, "other control plane": self._control_planes[-1]}

    async def run(self, *, seconds: float, most_rounds: int = 100_000) -> Figures:
        """Go through rounds for a time.

        Raises:
            ViolationError: Something did not hold; seed, round and the ends of the logs are in the text.
        """
        async with self.system.client() as client:
            for flow in EXPECTED:
                await self.system.instances(client, len(self._services), flow)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and self.figures.rounds < most_rounds:
                await self._round(client)
        return self.figures

    async def _round(self, client: Client) -> None:
        number = self.figures.rounds
        if not self._plan:
            self._plan = self._random.sample(self._faults, len(self._faults))
        what = self._plan.pop()
        flows = self._random.sample(BATCH, len(BATCH))
        jobs = [
            Job(flow, f"r{number}-{n}-{flow}", self._random.random() < 0.5) for n, flow in enumerate(flows)
        ]
        faults = Faults()
        self._ledger.clear()
        begun = time.monotonic()
        try:
            async with (
                asyncio.timeout(ROUND_SECONDS),
                asking(client, faults),
                asyncio.TaskGroup() as group,
            ):
                for job in jobs:
                    group.create_task(self._accompany(client, job))
                await self._strike(what, faults)
            wrong = [each for job in jobs for each in self._violations(job, faults)]
            for job in jobs:
                wrong += await self._stream_violations(job, faults)
            wrong += self._log_violations()
        except (Exception, ExceptionGroup) as exc:
            raise ViolationError(self._report(what, faults, [f"{type(exc).__name__}: {exc}"])) from exc
        if wrong:
            raise ViolationError(self._report(what, faults, wrong))
        self.figures.rounds += 1
        self.figures.longest_round = max(self.figures.longest_round, time.monotonic() - begun)
        answers = [until - since for since, until in faults.answers if faults.all_was_well(since, until)]
        self.figures.slowest_answer = max([self.figures.slowest_answer, *answers])
        self.figures.tasks += len(jobs)
        self.figures.faults[" + ".join(what)] += 1
        if set(what) <= {"service", "pause"}:
            self._measure_takeovers(jobs, faults)

    # -- the tasks

    async def _accompany(self, client: Client, job: Job) -> None:
        """Submit a task, read its stream as it comes, answer when it asks, and look at its result."""
        job.handle = handle = await client.submit(
            job.flow, max_attempts=10, name=job.name, seconds=round(self._random.uniform(0.02, 0.4), 2)
        )
        if job.flow == "human" and job.early_answer:
            await self._answer(handle)
        async for event in handle.events():
            job.live.append(event)
            if event.type == "Ask":
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

    # -- the faults

    async def _strike(self, what: Sequence[str], faults: Faults) -> None:
        """Kill or pause, at a random moment, and start again after a random time."""
        # Any moment may be the worst one, so this waits for no condition.
        await asyncio.sleep(self._random.uniform(0.0, 2.0))
        services = self._random.sample(self._services, 2)
        victims: dict[str, Part] = {**self._parts, "service": services[0], "other service": services[1]}
        paused = {"pause": services[0], "frozen control plane": self._control_planes[-1]}
        down = time.monotonic()
        for name in what:
            if name in paused:
                if name == "frozen control plane":
                    self._send_to(self._ports[:1])
                paused[name].pause()
            else:
                await asyncio.to_thread(victims[name].kill)
            # Noted when it is dead for certain: until then it may begin another step.
            if name in {"service", "pause", "other service"}:
                faults.deaths.append(Death(services[name == "other service"].pid, time.monotonic()))
        pause = LEASE_SECONDS + 1.5 if set(what) & set(paused) else 0.0
        await asyncio.sleep(self._random.uniform(0.0, 1.0))
        for name in self._random.sample(list(what), len(what)):
            if name not in paused:
                await asyncio.to_thread(victims[name].start)
                await asyncio.sleep(self._random.uniform(0.0, 0.5))
        await asyncio.sleep(max(0.0, down + pause - time.monotonic()))
        if "frozen control plane" in what:
            paused["frozen control plane"].resume()
            self._send_to(self._ports)
        if "pause" in what:
            pid = services[0].pid
            # Noted before it goes on: it may begin a step at once.
            woken = time.monotonic()
            services[0].resume()
            faults.deaths = [
                Death(each.pid, each.begin, woken) if each.pid == pid else each for each in faults.deaths
            ]
        await self._wait_for_parts(what, faults, down)

    def _send_to(self, ports: Sequence[int]) -> None:
        """Let the balancer pass to these ports, as one does that looks after the health of what is there."""
        if self._balancer is not None and set(self._balancer.target_ports) != set(ports):
            self._balancer.target_ports = list(ports)
            self._balancer.cut()

    async def _wait_for_parts(self, what: Sequence[str], faults: Faults, down: float) -> None:
        """Wait until all parts are there again; the outage ends when the last one has found the others."""
        async with self.system.client() as client:
            for flow in EXPECTED:
                await self.system.instances(client, len(self._services), flow)
        if {*self._parts, "frozen control plane"} & set(what):
            faults.outages.append((down, time.monotonic() + RECONNECT_SECONDS))

    # -- what must hold

    def _violations(self, job: Job, faults: Faults) -> list[str]:
        streamed = {(event.data["step"], event.data["pid"]) for event in job.live if event.type == "Progress"}
        return self._ledger.violations(job.flow, job.name, faults, streamed=streamed)

    async def _stream_violations(self, job: Job, faults: Faults) -> list[str]:
        """Return what is wrong with a task's stream, of which another reader reads all when it is over."""
        assert job.handle is not None
        later = [event async for event in job.handle.events()]
        wrong = []
        if later != job.live:
            wrong.append(f"two readers have seen different streams: {job.live} and {later}")
        if [event.index for event in later] != list(range(len(later))):
            wrong.append("the stream has gaps")
        if [event.terminal for event in later] != [False] * (len(later) - 1) + [True]:
            wrong.append("the terminal event is not the last one, or not the only one")
        if job.flow != "human":  # a run that waits for a person may come back where it was
            writers = [event.data["pid"] for event in later if event.type == "Progress"]
            wrong += comebacks(writers, faults)
        view = await job.handle.info()
        # In an outage the answer to a claim may be lost: that attempt never begins, and another is due.
        if view.attempt > 1 + len(faults.deaths) + len(faults.outages) + (job.flow == "human"):
            wrong.append(f"it took {view.attempt} attempts")
        return [f"task {job.name}: {each}" for each in wrong]

    def _log_violations(self) -> list[str]:
        """Refusals are told once for each attempt, by each control plane; nothing fails unforeseen."""
        lives = [life for each in self._control_planes for life in each.text.split("control plane on http")]
        wrong = []
        for life in lives:
            refused = re.findall(
                r"WARNING:\S+rejection_log:rejected .*? of (attempt \d+ of task [\w-]+)", life
            )
            wrong += [f"refused {n} times at WARNING: {key}" for key, n in Counter(refused).items() if n > 1]
        for program in self._programs():
            # A step that fails on purpose is no fault of the system.
            found = errors_in(program.text)
            wrong += [f"{program.output.name}: {line}" for line in found if "fails on purpose" not in line]
        return wrong

    def _programs(self) -> list[Program]:
        programs = [each for each in self._parts.values() if isinstance(each, Program)]
        return [*programs, *self._services]

    def _measure_takeovers(self, jobs: Sequence[Job], faults: Faults) -> None:
        lines = self._ledger.lines()
        names = {job.name for job in jobs}
        for death in faults.deaths:
            for name in names:
                self.figures.takeovers += takeover([line for line in lines if line.task == name], death)

    def _report(self, what: Sequence[str], faults: Faults, wrong: Sequence[str]) -> str:
        logs = [
            f"--- {program.output.name}\n" + "\n".join(program.text.splitlines()[-30:])
            for program in self._programs()
        ]
        head = f"seed {self.seed}, round {self.figures.rounds}, {' + '.join(what)}: {faults}"
        text = " ".join(wrong)
        lines = [str(line) for line in self._ledger.lines() if re.search(rf"\b{line.task}\b", text)]
        return "\n".join([head, *wrong, *lines, *logs])


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


def comebacks(writers: Sequence[int], faults: Faults) -> list[str]:
    """Return what is wrong with the order in which processes wrote into a stream.

    One comes back only if the one that took its place has died.
    """
    turns = [pid for n, pid in enumerate(writers) if n == 0 or writers[n - 1] != pid]
    died = {death.pid for death in faults.deaths}
    return [
        f"process {after} wrote into the stream after {before} had taken its place"
        for n, (before, after) in enumerate(pairwise(turns))
        if after in turns[: n + 1] and before not in died
    ]
