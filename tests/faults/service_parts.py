"""Queue, control planes and services without a supervisor, each in a process, and what is done to them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

from llama_deploy import Client
from llama_deploy.testing.processes import Program
from llama_deploy.testing.tcp_proxy import TcpProxy
from tests.faults.chaos import LEASE_SECONDS, RECONNECT_SECONDS, Part
from tests.faults.conftest import System
from tests.faults.ledger import EXPECTED, Death, Faults
from tests.servers.brokers import Broker
from tests.servers.postgresql import PostgreSQLServer

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


class ServiceParts:
    """Queue, control plane and two services.

    Args:
        system: Starts the processes.
        broker: What the queue is. None: a simple queue in a process of its own.
        database: What the store is; it is killed too. None: SQLite.
        balancer: Stands before two control planes over the database, on the ports to which it passes. None:
            there is one control plane.
    """

    def __init__(
        self,
        system: System,
        *,
        broker: Broker | None = None,
        database: PostgreSQLServer | None = None,
        balancer: TcpProxy | None = None,
    ) -> None:
        self.system = system
        self.faults = FAULTS if database is None else (*FAULTS, *FAULTS_OF_A_DATABASE)
        self._balancer = balancer
        self._ports = balancer.target_ports if balancer else [system.control_plane_port]
        system.env["CONTROL_PLANE_LEASE_SECONDS"] = str(LEASE_SECONDS)
        system.env["LLAMA_DEPLOY_WF_SERVICE_IDLE_TIMEOUT"] = "0.3"
        self.control_planes = [
            system.start("core.py", "control_plane", CONTROL_PLANE_PORT=str(port)) for port in self._ports
        ]
        self._parts: dict[str, Part] = {
            "queue": broker or system.start("core.py", "message_queue"),
            "control plane": self.control_planes[0],
        }
        if database is not None:
            self._parts |= {"database": database, "other control plane": self.control_planes[-1]}
        self._services = [system.module("hosts"), system.module("hosts")]

    @property
    def programs(self) -> list[Program]:
        """All whose output is looked at."""
        programs = [each for each in self._parts.values() if isinstance(each, Program)]
        return [*programs, *self._services]

    async def are_there(self, client: Client) -> None:
        """Wait until all parts work."""
        for flow in EXPECTED:
            await self.system.instances(client, len(self._services), flow)

    async def strike(self, what: Sequence[str], faults: Faults, chance: random.Random) -> None:
        """Kill or pause, and start again after a random time."""
        services = chance.sample(self._services, 2)
        victims: dict[str, Part] = {**self._parts, "service": services[0], "other service": services[1]}
        paused = {"pause": services[0], "frozen control plane": self.control_planes[-1]}
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
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        for name in chance.sample(list(what), len(what)):
            if name not in paused:
                await asyncio.to_thread(victims[name].start)
                await asyncio.sleep(chance.uniform(0.0, 0.5))
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
        async with self.system.client() as client:
            await self.are_there(client)
        if {*self._parts, "frozen control plane"} & set(what):
            # The outage ends when the last one has found the others.
            faults.outages.append((down, time.monotonic() + RECONNECT_SECONDS))

    def _send_to(self, ports: Sequence[int]) -> None:
        """Let the balancer pass to these ports, as one does that looks after the health of what is there."""
        if self._balancer is not None and set(self._balancer.target_ports) != set(ports):
            self._balancer.target_ports = list(ports)
            self._balancer.cut()
