"""How long tasks wait when a process is killed that has a supervisor, and when a machine is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import pytest

from llama_deploy import Client
from llama_deploy.testing.conditions import eventually
from tests.faults.chaos import percentiles, quantile
from tests.faults.conftest import System
from tests.faults.ledger import EXPECTED, Death, Ledger, takeover
from tests.faults.machines import PROCESSES, Machine, working_machine
from tests.figures import Tell
from tests.pulse import Pulse

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

TASKS: Final = 100
MEASURED: Final = 100
"""How many takeovers are enough for a statement about one of a hundred."""
MAX_ROUNDS: Final = 12
LEASE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Round:
    """What one kill has shown."""

    takeovers: list[float]
    """In seconds from the kill to the next step of a task."""
    was_quiet: bool
    """See `Pulse.is_quiet`."""
    slowness: float
    """See `Pulse.slowness`."""


async def test_a_killed_child_costs_its_tasks_half_a_second(system: System, pulse: Pulse, tell: Tell) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "60"  # a takeover that waits for it fails the test
    one = hosts(system, 1)[0]

    async def kill(first: int) -> list[Death]:
        assert first in one.children()
        return await one.kill_children([first])

    times = await measured(system, pulse, kill, instances=PROCESSES)
    tell(f"takeover of a killed child, {TASKS} tasks over {PROCESSES}: {percentiles(times)}")
    assert quantile(times, 0.99) <= 0.5


async def test_a_lost_machine_costs_its_tasks_the_lease_and_a_second(
    system: System, pulse: Pulse, tell: Tell
) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = str(LEASE_SECONDS)
    machines = hosts(system, 2)

    async def lose(first: int) -> list[Death]:
        (lost,) = [each for each in machines if first in each.children()]
        deaths = await lost.kill()
        lost.start()
        return deaths

    times = await measured(system, pulse, lose, instances=2 * PROCESSES)
    tell(f"takeover of a lost machine, {TASKS} tasks over 2, lease {LEASE_SECONDS:g} s: {percentiles(times)}")
    assert quantile(times, 0.99) <= LEASE_SECONDS + 1.0


def hosts(system: System, count: int) -> list[Machine]:
    """Start a control plane and machines, each of whose processes has room for all tasks."""
    system.env["LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS"] = str(TASKS)
    system.start("core.py")
    return [working_machine(system, drain_timeout=5.0) for _ in range(count)]


async def measured(
    system: System, pulse: Pulse, kill: Callable[[int], Awaitable[list[Death]]], *, instances: int
) -> list[float]:
    """Kill again and again under tasks, and return the takeovers of the rounds that say something."""
    rounds: list[Round] = []
    async with system.client() as client:
        for number in range(MAX_ROUNDS):
            await system.instances(client, instances, "chain")
            rounds.append(await one_round(system, client, kill, pulse, number=number))
            times = [seconds for each in rounds if each.was_quiet for seconds in each.takeovers]
            if len(times) >= MEASURED:
                return times
    seen = ", ".join(f"{percentiles(each.takeovers)}, {each.slowness:.1f} times slower" for each in rounds)
    pytest.skip(f"this computer is too busy to measure takeovers: {seen}")


async def one_round(
    system: System,
    client: Client,
    kill: Callable[[int], Awaitable[list[Death]]],
    pulse: Pulse,
    *,
    number: int,
) -> Round:
    """Kill under tasks that all are in their first step."""
    ledger = Ledger(system.ledger_path)
    ledger.clear()
    names = [f"r{number}-{n}" for n in range(TASKS)]
    handles = [await client.submit("chain", name=name, seconds=1.0) for name in names]
    await eventually(lambda: len(ledger.begun()) >= TASKS, seconds=60)
    deaths = await kill(ledger.begun()[-1].pid)
    results = await asyncio.gather(*(handle.result() for handle in handles))
    assert results == [f"{name}: {EXPECTED['chain']}" for name in names]
    lines = ledger.lines()
    own = {name: [line for line in lines if line.task == name] for name in names}
    times = [seconds for each in own.values() for death in deaths for seconds in takeover(each, death)]
    assert times, "nothing ran where it was killed"
    begun = min(death.earliest for death in deaths)
    ended = begun + max(times)
    return Round(times, pulse.is_quiet(begun, ended), pulse.slowness(begun, ended))
