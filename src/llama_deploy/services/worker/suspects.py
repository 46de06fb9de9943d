"""Runs suspects: tasks whose processes have died repeatedly, each alone in its process."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from llama_deploy.errors import LlamaDeployError
from llama_deploy.services.worker.attempt import Attempt
from llama_deploy.services.worker.shared_process import ProcessMember, SharedProcess
from llama_deploy.services.worker.task_intake import TaskIntake
from llama_deploy.services.worker.work_slots import WorkSlots

logger = logging.getLogger(__name__)

IDLE_SECONDS: Final = 5.0
"""How long to wait for a suspect."""


@dataclass(slots=True, eq=False)
class Suspects:
    """Runs suspects of one service, one at a time, while no worker of this process does anything else.

    Without a supervisor, the whole process steps back for each of them: it takes no new tasks, waits until
    those that it runs have ended or only wait, however long that takes, runs one suspect, and takes tasks
    again. So neither the suspects nor the others wait forever.
    """

    intake: TaskIntake[Any]
    slots: WorkSlots
    process: SharedProcess
    topic: str
    service_name: str
    _member: ProcessMember = field(init=False)
    _asked: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        """Other workers of the process may run in other threads."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self.slots.wake)

        self._member = ProcessMember(busy=lambda: self.slots.busy, wake=wake)

    def open(self) -> None:
        """Take part in the process, until `close`."""
        self.process.join(self._member)

    @property
    def has_process(self) -> bool:
        """Whether the process runs a suspect of this service, or is about to."""
        return self.process.is_owned_by(self._member)

    def ask(self) -> None:
        """The control plane asks to run a suspect."""
        self._asked.set()

    async def run_when_asked(self) -> None:
        """Run one suspect each time that the control plane asks; until cancelled."""
        while True:
            await self._asked.wait()
            if self.process.reserve(self._member):
                try:
                    await self._run_in_turn()
                except LlamaDeployError as exc:
                    logger.warning(
                        "a task of service %s that is to run alone cannot be taken: %s; trying again",
                        self.service_name,
                        exc,
                        extra={"action": "run_alone_failed", "service_name": self.service_name},
                    )
                finally:
                    self.process.release(self._member)
            self._asked.clear()  # other tasks have their turn before the next one

    async def run_until_idle(self) -> None:
        """Run suspects in a process that does nothing else, until there are none for `IDLE_SECONDS`."""
        self.process.reserve(self._member)
        while await self._run_one() or self.slots.tasks:
            pass

    async def _run_in_turn(self) -> None:
        logger.info(
            "process %d takes no new tasks until it has run a task of service %s alone, whose processes have"
            " died; it waits for its running tasks",
            os.getpid(),
            self.service_name,
            extra={"action": "step_back", "service_name": self.service_name},
        )
        if not await self._run_one():
            logger.info(
                "process %d takes new tasks again: for %g s there was no task of service %s that it could run"
                " alone; another process may have taken it",
                os.getpid(),
                IDLE_SECONDS,
                self.service_name,
                extra={"action": "step_forward", "service_name": self.service_name},
            )

    async def _run_one(self) -> bool:
        """Run a suspect until it has ended, or only waits. False: there is none."""
        await self.slots.wait_until(self.process.is_idle)
        if not await self.intake.take_one(self.topic, seconds=IDLE_SECONDS, on_claimed=_log_alone):
            return False
        await self.slots.wait_until(lambda: not self.slots.busy)
        return True

    def close(self) -> None:
        """Leave the process to the other workers. Idempotent."""
        self.process.leave(self._member)


def _log_alone(attempt: Attempt) -> None:
    logger.warning(
        "task %s runs alone in process %d, because its processes have died twice",
        attempt.key.task_id,
        os.getpid(),
        extra={"action": "run_alone", "task_id": attempt.key.task_id},
    )
