"""Queue and control plane, and machines with supervisors, and what is done to them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

from llama_deploy import Client
from llama_deploy.testing.processes import Program
from tests.faults.chaos import LEASE_SECONDS, RECONNECT_SECONDS
from tests.faults.conftest import System
from tests.faults.ledger import EXPECTED, Faults
from tests.faults.machine_strikes import Strikes, starting
from tests.faults.machines import PATIENT_SECONDS, PROCESSES, serving_machine, working_machine
from tests.pulse import Pulse

FAULTS: Final[tuple[tuple[str, ...], ...]] = (
    ("child",),
    ("children",),
    ("child", "other child"),
    ("children", "other children"),
    ("supervisor",),
    ("supervisor", "other child"),
    ("machine",),
    ("machine", "other machine"),
    ("paused child",),
    ("paused supervisor",),
    ("paused supervisor", "child"),
    ("paused machine",),
    ("drain",),
    ("drain", "other child"),
    ("drain", "other drain"),
    ("drained child",),
    ("drained child", "child"),
)
"""What is done together, to a machine and to the other one.

Killed are: one `child` of two; all `children`; a `supervisor` alone; a `machine`, with its children. What is
paused goes on when the lease has ended. `drain` is SIGTERM to a supervisor.
"""
FAULTS_OF_PARTS: Final[tuple[tuple[str, ...], ...]] = (
    ("control plane",),
    ("queue",),
    ("control plane", "queue"),
    ("child", "control plane"),
    ("children", "queue"),
    ("supervisor", "control plane"),
    ("machine", "control plane", "queue", "other machine"),
    ("paused child", "control plane"),
    ("paused supervisor", "control plane"),
    ("drain", "control plane"),
    ("drain", "queue"),
)
"""The same, with queue or control plane if they are processes of their own."""
CHILDREN: Final = frozenset({"child", "children", "drained child", "paused child"})
"""What leaves the supervisor alone, and what else runs in its process."""
IMPATIENT_SECONDS: Final = 0.5
"""A `drain_timeout` in which some tasks do not end."""


class MachineParts:
    """Queue, control plane and two machines, of which one drains with patience.

    Args:
        system: Starts the processes.
        is_served: Whether control plane and queue run in the supervisor of a machine, by `llamactl serve`.
    """

    def __init__(self, system: System, *, is_served: bool = False) -> None:
        self.system = system
        system.env["CONTROL_PLANE_LEASE_SECONDS"] = str(LEASE_SECONDS)
        system.env["LLAMA_DEPLOY_WF_SERVICE_IDLE_TIMEOUT"] = "0.3"
        self.faults = FAULTS if is_served else (*FAULTS, *FAULTS_OF_PARTS)
        self._parts: dict[str, Program] = {}
        if is_served:
            core = serving_machine(system, drain_timeout=PATIENT_SECONDS)
            self.control_planes = [core.program]
        else:
            self._parts = {
                "queue": system.start("core.py", "message_queue"),
                "control plane": system.start("core.py", "control_plane"),
            }
            self.control_planes = [self._parts["control plane"]]
            core = working_machine(system, drain_timeout=PATIENT_SECONDS)
        self._served = core if is_served else None
        self._machines = [core, working_machine(system, drain_timeout=IMPATIENT_SECONDS)]

    @property
    def programs(self) -> list[Program]:
        """All whose output is looked at."""
        return [*self._parts.values(), *(each.program for each in self._machines)]

    async def are_there(self, client: Client) -> None:
        """Wait until all parts work."""
        for flow in EXPECTED:
            await self.system.instances(client, len(self._machines) * PROCESSES, flow, ordinary=True)

    async def strike(self, what: Sequence[str], faults: Faults, chance: random.Random) -> None:
        """Kill, pause or drain, and start again after a random time."""
        machines = chance.sample(self._machines, 2)
        struck = {name: machines[name.startswith("other ")] for name in what if name not in self._parts}
        is_outage = any(
            name in self._parts
            or (struck[name] is self._served and name.removeprefix("other ") not in CHILDREN)
            for name in what
        )
        begun = time.monotonic()
        with Pulse() as pulse:
            strikes = Strikes(faults, chance, pulse, is_outage)
            restores = []
            for name in what:
                if name in self._parts:
                    await asyncio.to_thread(self._parts[name].kill)
                    restores.append(starting(self._parts[name]))
                else:
                    restores.append(await strikes.strike(name.removeprefix("other "), struck[name]))
            # At once, because a machine that drains may need the queue to end.
            async with asyncio.TaskGroup() as group:
                for restore in chance.sample(restores, len(restores)):
                    await asyncio.sleep(chance.uniform(0.0, 1.0))
                    group.create_task(restore())
        async with self.system.client() as client:
            await self.are_there(client)
        if is_outage:
            # The outage ends when the last one has found the others.
            faults.outages.append((begun, time.monotonic() + RECONNECT_SECONDS))
