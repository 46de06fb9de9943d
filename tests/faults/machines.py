"""Machines: `llamactl worker` supervisors with their children, as they are killed, paused and drained."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psutil

from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import Program, free_port
from tests.faults.conftest import System
from tests.faults.ledger import Death
from tests.faults.programs.flows import FLOWS, Answer

PROCESSES: Final = 2
"""How many children a machine has, beside those that run suspects."""
PATIENT_SECONDS: Final = 60.0
"""A `drain_timeout` in which all tasks end."""
GONE_SECONDS: Final = 60.0
"""A limit for what takes milliseconds if the machine is not crowded."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A supervisor, and the children that it has at the moment."""

    program: Program
    drain_timeout: float
    """In seconds."""

    @property
    def is_patient(self) -> bool:
        """Whether all that runs ends within its `drain_timeout`, unless it waits."""
        return self.drain_timeout >= PATIENT_SECONDS

    def children(self) -> list[int]:
        """Return the ids of the processes that run steps, in order."""
        with suppress(psutil.NoSuchProcess):
            return sorted(each.pid for each in psutil.Process(self.program.pid).children())
        return []

    def start(self) -> None:
        """Start it again after it has ended."""
        self.program.start()

    async def kill_children(self, pids: Sequence[int]) -> list[Death]:
        """Kill these, and return when they are dead. The supervisor goes on."""
        return await _kill(pids, lambda: _signal(pids, signal.SIGKILL))

    async def kill_supervisor(self) -> list[Death]:
        """Kill the supervisor alone, and return when its children have ended."""
        return await _kill(self.children(), self.program.kill)

    async def kill(self) -> list[Death]:
        """Kill the supervisor and its children at once, as the loss of a machine does."""
        children = self.children()
        pids = [self.program.pid, *children]
        deaths = await _kill(children, lambda: _signal(pids, signal.SIGKILL))
        self.program.wait()
        return deaths

    def ask_to_end(self, child: int | None = None) -> None:
        """Send SIGTERM, to the supervisor or to a child."""
        _signal([self.program.pid if child is None else child], signal.SIGTERM)


def working_machine(system: System, *, drain_timeout: float) -> Machine:
    """Start `llamactl worker` with all workflows of `programs/flows.py`."""
    return _machine(system, "-s", system.url, "worker", drain_timeout=drain_timeout)


def serving_machine(system: System, *, drain_timeout: float) -> Machine:
    """Start `llamactl serve` with them: control plane and queue are in the process of the supervisor."""
    folder = system.folder / "served"
    ports = ("--port", str(system.control_plane_port), "--queue-port", str(free_port()))
    for name in ("CONTROL_PLANE_STATE_STORE_URI", "SIMPLE_MESSAGE_QUEUE_JOURNAL_PATH"):
        system.env.pop(name)
    return _machine(system, "serve", *ports, "--data-dir", str(folder), drain_timeout=drain_timeout)


def _machine(system: System, *command: str, drain_timeout: float) -> Machine:
    targets = [f"{name}=tests.faults.programs.hosted_flows:{name}" for name in FLOWS]
    answers = f"{Answer.__module__}.{Answer.__qualname__}"
    program = system.llamactl(
        *(*command, *targets, "--processes", str(PROCESSES), "--allow-type", answers),
        LLAMA_DEPLOY_WF_SERVICE_DRAIN_TIMEOUT=str(drain_timeout),
    )
    return Machine(program, drain_timeout)


def is_alive(pid: int) -> bool:
    """Whether a process runs, or is stopped; one that nobody has waited for yet has ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def gone(pids: Iterable[int], *, seconds: float = GONE_SECONDS) -> None:
    """Wait until all of these processes have ended."""
    await eventually(lambda: not any(map(is_alive, pids)), seconds=seconds)


def pause(pids: Iterable[int]) -> list[Death]:
    """Stop processes where they stand (SIGSTOP)."""
    pids, since = list(pids), time.monotonic()
    _signal(pids, signal.SIGSTOP)
    return [Death(pid, time.monotonic(), since=since) for pid in pids]


def resume(pids: Iterable[int]) -> None:
    """Let paused processes go on (SIGCONT)."""
    _signal(pids, signal.SIGCONT)


def _signal(pids: Iterable[int], signum: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


async def _kill(pids: Sequence[int], kill: Callable[[], object]) -> list[Death]:
    since = time.monotonic()
    kill()
    await gone(pids)
    return [Death(pid, time.monotonic(), since=since) for pid in pids]
