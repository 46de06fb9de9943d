"""Large runs, with the workflow library alone and served: `python -m benchmarks.fan_out`.

Both run in this process, in turns, over an SQLite file with `synchronous=FULL`. So the time of a served run
includes the control plane, the queue and the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from benchmarks.machine import describe_machine
from benchmarks.workloads import Chain
from llama_deploy.client import Client
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.deploy.stack import HostedWorkflow, LocalStack
from llama_deploy.message_queues import SimpleMessageQueueConfig
from llama_deploy.services import WorkflowServiceConfig

HOST: Final = "127.0.0.1"
MAX_RATIO: Final = 1.3
"""How much longer the largest fan-out of each form may take when it is served."""
RUN_SECONDS: Final = 900.0
"""A served run that takes longer has failed."""
BARE: Final = "bare"
DURABILITIES: Final = ("auto", "step")
Durability = Literal["auto", "step"]


class Go(StartEvent):
    """How many branches there are."""

    steps: int


class Item(Event):
    """The work of one branch."""

    number: int


class Done(Event):
    """Its result."""

    number: int


class Sending(Workflow):
    """Sends events, and collects what becomes of them."""

    @step
    async def split(self, ctx: Context, ev: Go) -> Item | None:
        """Send one event for each branch."""
        await ctx.store.set("steps", ev.steps)
        for number in range(ev.steps):
            ctx.send_event(Item(number=number))
        return None

    @step
    async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
        """Collect the results."""
        done = ctx.collect_events(ev, [Done] * await ctx.store.get("steps"))
        return None if done is None else StopEvent(result="ok")


class Sent(Sending):
    """Does so four branches at a time that do nothing."""

    @step
    async def work(self, ev: Item) -> Done:
        """Do nothing."""
        return Done(number=ev.number)


class SentWide(Sending):
    """Does so with a hundred branches at a time that take a while."""

    @step(num_workers=100)
    async def work(self, ev: Item) -> Done:
        """Wait."""
        await asyncio.sleep(0.001)
        return Done(number=ev.number)


class Listing(Workflow):
    """Returns a list of events, and takes one of their results."""

    @step
    async def split(self, ev: Go) -> list[Item]:
        """Return one event for each branch."""
        return [Item(number=number) for number in range(ev.steps)]

    @step
    async def join(self, ev: list[Done]) -> StopEvent:  # noqa: ARG002 - a step takes its event
        """Take the results."""
        return StopEvent(result="ok")


class Listed(Listing):
    """Does so four branches at a time that do nothing."""

    @step
    async def work(self, ev: Item) -> Done:
        """Do nothing."""
        return Done(number=ev.number)


class ListedWide(Listing):
    """Does so with a hundred branches at a time that take a while."""

    @step(num_workers=100)
    async def work(self, ev: Item) -> Done:
        """Wait."""
        await asyncio.sleep(0.001)
        return Done(number=ev.number)


FORMS: Final[Mapping[str, type[Workflow]]] = {
    "sent": Sent,
    "sent_wide": SentWide,
    "listed": Listed,
    "listed_wide": ListedWide,
    "chain": Chain,
}
"""What runs, by name. A chain takes its steps one after the other."""


@dataclass(slots=True)
class Times:
    """The seconds of one form with one size."""

    form: str
    size: int
    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    async def measure(self, side: str, run: Callable[[], Awaitable[object]]) -> None:
        """Take the time of a run.

        Raises:
            RuntimeError: The run has not ended as it should.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        if (answer := await run()) != "ok":
            raise RuntimeError(f"{self.form} with {self.size} steps answered {answer!r}")
        self.wall.setdefault(side, []).append(time.perf_counter() - wall)
        self.cpu.setdefault(side, []).append(time.process_time() - cpu)

    def ratio(self, side: str, of: Mapping[str, list[float]] | None = None) -> float:
        """Return the median of a side divided by that of the library alone."""
        seconds = self.wall if of is None else of
        return statistics.median(seconds[side]) / statistics.median(seconds[BARE])

    @property
    def step_ms(self) -> dict[str, float]:
        """How many milliseconds a step costs on each side above the library alone."""
        least = statistics.median(self.wall[BARE])
        return {
            side: 1000 * (statistics.median(self.wall[side]) - least) / self.size for side in DURABILITIES
        }

    def as_json(self) -> dict[str, Any]:
        """Return the seconds as JSON."""
        return {
            "form": self.form,
            "size": self.size,
            "wall_seconds": self.wall,
            "cpu_seconds": self.cpu,
            "wall_ratio": {side: self.ratio(side) for side in DURABILITIES},
            "cpu_ratio": {side: self.ratio(side, self.cpu) for side in DURABILITIES},
            "step_ms": self.step_ms,
        }


def service_name(form: str, durability: Durability) -> str:
    """Return the service of a form."""
    return f"{form}_{durability}"


def hosted(form: str, durability: Durability) -> HostedWorkflow:
    """Return a form with the settings of its service."""
    config = WorkflowServiceConfig(
        host=HOST, port=0, service_name=service_name(form, durability), durability=durability
    )
    return HostedWorkflow(FORMS[form](timeout=None), config)


async def measure(client: Client, form: str, size: int, *, rounds: int) -> Times:
    """Run a form alone and served, in turns."""
    times = Times(form, size)

    async def alone() -> object:
        return await FORMS[form](timeout=None).run(steps=size)

    async def served(durability: Durability) -> object:
        return await client.run(service_name(form, durability), timeout=RUN_SECONDS, steps=size)

    for _ in range(rounds):
        await times.measure(BARE, alone)
        await times.measure("auto", lambda: served("auto"))
        await times.measure("step", lambda: served("step"))
    return times


async def measure_all(options: argparse.Namespace, *, console: Console) -> list[Times]:
    """Measure what the command line asks for."""
    found: list[Times] = []
    with tempfile.TemporaryDirectory(prefix="llama_deploy_bench_") as folder:
        config = ControlPlaneConfig(host=HOST, port=0, state_store_uri=f"sqlite:///{folder}/state.db")
        services = [hosted(form, each) for form in options.form for each in ("auto", "step")]
        async with (
            await LocalStack.start(
                services,
                control_plane_config=config,
                message_queue_config=SimpleMessageQueueConfig(host=HOST, port=0),
            ) as stack,
            Client(control_plane_url=stack.control_plane_url) as client,
        ):
            for form in options.form:
                await measure(client, form, 10, rounds=1)  # to be warm
                for size in options.sizes:
                    found.append(await measure(client, form, size, rounds=options.rounds))
                    console.print(f"{form} {size}: {found[-1].ratio('step'):.2f}")
    return found


def as_table(found: list[Times]) -> Table:
    """Return the figures for people."""
    table = Table(title="large runs in one process, SQLite synchronous=FULL; ratios to the library alone")
    for column in ("form", "size", "alone s", "auto s", "ratio", "step s", "ratio", "CPU ratio", "ms/step"):
        table.add_column(column, justify="right" if column != "form" else "left", no_wrap=True)
    for each in found:
        wall = {side: statistics.median(seconds) for side, seconds in each.wall.items()}
        table.add_row(
            each.form,
            f"{each.size:,}",
            f"{wall[BARE]:.2f}",
            f"{wall['auto']:.2f}",
            f"{each.ratio('auto'):.2f}",
            f"{wall['step']:.2f}",
            f"{each.ratio('step'):.2f}",
            f"{each.ratio('step', each.cpu):.2f}",
            f"{each.step_ms['step']:.2f}",
        )
    return table


def passed(found: list[Times], largest: int) -> bool:
    """Whether the largest fan-outs keep their limit. A chain waits for the disk after each step."""
    return all(
        each.ratio(side) <= MAX_RATIO
        for each in found
        if each.size == largest and each.form != "chain"
        for side in DURABILITIES
    )


def main() -> int:
    """Run the benchmark; returns 1 if the largest fan-out takes too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", action="append", choices=FORMS, help="only this one; may be repeated")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1_000, 2_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    options.form = options.form or [*FORMS]
    logging.disable(logging.WARNING)  # the library alone blocks the loop for longer than it may
    console = Console()
    found = asyncio.run(measure_all(options, console=console))
    console.print(as_table(found))
    if options.json:
        report = {"context": describe_machine(quick=False), "runs": [each.as_json() for each in found]}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if passed(found, max(options.sizes)) else 1


if __name__ == "__main__":
    sys.exit(main())
