"""Moving on the tasks of a process that has ended, as soon as its supervisor reports it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from llama_deploy.control_plane.requests.attempts.report_barrier import ReportBarrier
from llama_deploy.control_plane.storage.dead_processes import MovedTask, move_on
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.state_stores.base import StateStore
from llama_deploy.types.instance_protocol import ProcessDeath

_REPORTS_SECONDS: Final = 0.2
"""How long the last reports of the process may take to be stored."""


@dataclass(frozen=True, slots=True)
class ProcessDeaths:
    """Takes the reports of supervisors."""

    store: StateStore
    writer: Writer
    barrier: ReportBarrier

    async def report(self, death: ProcessDeath) -> None:
        """Give the tasks of a dead process their next attempts, and delete its instances.

        Its reports that are in the queue are taken first, so that what it has finished does not run again.
        Instances that have registered with the same process as a named one are gone too. Idempotent; unknown
        instances are ignored.

        Raises:
            UnavailableError: The store does not answer.
            OverloadedError: Too many writes wait.
        """
        instance_ids, _ = await asyncio.gather(
            self._with_others(death.instances), self.barrier.wait(_REPORTS_SECONDS)
        )

        def run(unit: Unit) -> Sequence[MovedTask]:
            found = [item for each in instance_ids if (item := unit.instances.find(each)) is not None]
            moved = move_on(unit, found, culprits=frozenset(death.culprits), because=death.reason)
            unit.remove_instances(instance_ids)
            return moved

        for moved in await self.writer.write(Command(run, Reads(instances=instance_ids))):
            moved.log(f"because the process {death.reason}", action="process_died")

    async def _with_others(self, named: Collection[str]) -> frozenset[str]:
        """Return the named instances, and the others of their processes."""
        found = await self.store.read(lambda tx: tx.instances.load())
        dead = {item.process_id for item in found if item.instance_id in named} - {None}
        return frozenset(named) | {item.instance_id for item in found if item.process_id in dead}
