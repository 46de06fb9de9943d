"""What is done to a machine: it is killed, paused or drained, and restored after a while."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from llama_deploy.testing.processes import Program
from tests.faults.chaos import LEASE_SECONDS, ViolationError
from tests.faults.ledger import Death, Faults
from tests.faults.machines import GONE_SECONDS, Machine, gone, pause, resume
from tests.pulse import Pulse

STOP_SECONDS: Final = 1.0
"""In what time the children of a dead supervisor end."""
DRAIN_GRACE_SECONDS: Final = 2.0
"""How much longer than its `drain_timeout` a supervisor takes to end."""
PAUSE_SECONDS: Final = LEASE_SECONDS + 1.5

Restore: TypeAlias = Callable[[], Coroutine[None, None, None]]
"""Starts again what was killed, or lets go on what was paused."""


@dataclass(frozen=True, slots=True)
class Strikes:
    """Does something to machines, and notes it.

    Args:
        faults: Where it is noted.
        chance: Chooses children.
        pulse: How busy the computer is.
        is_outage: Whether queue or control plane are away meanwhile.
    """

    faults: Faults
    chance: random.Random
    pulse: Pulse
    is_outage: bool

    async def strike(self, name: str, one: Machine) -> Restore:
        """Do what is named to a machine, and return what ends it.

        Raises:
            ViolationError: A process has not behaved as it must.
        """
        match name:
            case "child" | "children":
                children = one.children()
                pids = children if name == "children" else [self.chance.choice(children)]
                self.faults.deaths += await one.kill_children(pids)
                return _nothing  # the supervisor does it
            case "drained child":
                return self._drain_child(one, self.chance.choice(one.children()))
            case "supervisor" | "machine":
                deaths = await (one.kill() if name == "machine" else one.kill_supervisor())
                self.faults.deaths += deaths
                self._check_stop(deaths)
                return starting(one)
            case "paused child" | "paused supervisor" | "paused machine":
                return self._pause(name.removeprefix("paused "), one)
            case "drain":
                return self._drain(one)
        raise ValueError(name)

    def _pause(self, what: str, one: Machine) -> Restore:
        begun = time.monotonic()
        others = [] if what == "child" else [one.program.pid]
        pause(others)
        children = one.children()
        deaths = pause({"child": [self.chance.choice(children)], "machine": children}.get(what, []))

        async def go_on() -> None:
            await asyncio.sleep(max(0.0, begun + PAUSE_SECONDS - time.monotonic()))
            # Noted before they go on: they may begin a step at once.
            woken = time.monotonic()
            self.faults.deaths += [replace(death, end=woken) for death in deaths]
            resume([*others, *(death.pid for death in deaths)])

        return go_on

    def _drain(self, one: Machine) -> Restore:
        """Ask a machine to end."""
        since, children = time.monotonic(), one.children()
        one.ask_to_end()

        async def start() -> None:
            code = await asyncio.to_thread(
                one.program.wait, seconds=one.drain_timeout + DRAIN_GRACE_SECONDS + GONE_SECONDS
            )
            ended = time.monotonic()
            await gone(children)
            seconds = ended - since
            if self.pulse.idle_seconds(since, ended) > one.drain_timeout + DRAIN_GRACE_SECONDS:
                raise ViolationError(f"the drain of {one.program.output.name} took {seconds:.2f} s")
            # If what it needs to hand back its tasks is away, or the computer is busy, it has to end without.
            may_be_late = self.is_outage or not self.pulse.is_quiet(since, ended)
            if code != 0 and not (may_be_late and code == 128 + signal.SIGTERM):
                raise ViolationError(f"{one.program.output.name} has ended with {code} when it was drained")
            self._note_drained(one, [Death(pid, ended, since=since) for pid in children])
            one.start()

        return start

    def _drain_child(self, one: Machine, pid: int) -> Restore:
        """Ask a child to end; its supervisor starts another one."""
        since = time.monotonic()
        one.ask_to_end(pid)

        async def wait() -> None:
            await gone([pid], seconds=one.drain_timeout + DRAIN_GRACE_SECONDS + GONE_SECONDS)
            self._note_drained(one, [Death(pid, time.monotonic(), since=since)])

        return wait

    def _note_drained(self, one: Machine, drained: Sequence[Death]) -> None:
        self.faults.drained += drained
        if not one.is_patient:
            self.faults.deaths += drained

    def _check_stop(self, deaths: Sequence[Death]) -> None:
        for death in deaths:
            seconds = death.begin - death.earliest
            if self.pulse.idle_seconds(death.earliest, death.begin) > STOP_SECONDS:
                raise ViolationError(f"child {death.pid} lived for {seconds:.2f} s after its supervisor")


async def _nothing() -> None:
    """Nothing is to be restored."""


def starting(part: Program | Machine) -> Restore:
    """Return what starts a part again."""

    async def start() -> None:
        await asyncio.to_thread(part.start)

    return start
