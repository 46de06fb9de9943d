"""Whether a control plane can accept and dispatch tasks: the checks of `/health/ready`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from llama_deploy.concurrency.daemon_threads import in_own_thread
from llama_deploy.concurrency.descriptors import free_descriptors
from llama_deploy.concurrency.probe import Probe
from llama_deploy.control_plane.decisions.health_rules import descriptor_problem, disk_problem
from llama_deploy.control_plane.dispatch.outbox_relay import OutboxRelay
from llama_deploy.errors import UnavailableError
from llama_deploy.health import Checks
from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.state_stores.base import StateStore

logger = logging.getLogger(__name__)

HealthCheck = Callable[[], Awaitable[None]]
"""Raises `LlamaDeployError` with the reason if something is wrong."""
STALLED_SECONDS: Final = 30.0
"""After how long without progress messages count as stuck, although no error was reported."""


@dataclass(slots=True, eq=False)
class Readiness:
    """Runs the checks of a control plane. `close` it."""

    store: StateStore
    queue: AbstractMessageQueue
    relay: OutboxRelay
    parts: Sequence[asyncio.Task[None]]
    """What the control plane runs in the background, which ends only if it fails."""
    min_free_disk_bytes: int
    further: Mapping[str, HealthCheck] = field(default_factory=dict)
    """Checks of what else this process runs, by name."""
    _probes: dict[str, Probe] = field(init=False)
    _failing: set[str] = field(default_factory=set, init=False)
    """The checks that are logged as failing."""

    def __post_init__(self) -> None:
        """Name the checks."""
        checks: dict[str, HealthCheck] = {
            "store": self.store.check_writable,
            "disk": self._check_disk,
            "queue": self.queue.check,
            "dispatch": self._check_dispatch,
            "process": self._check_process,
            **self.further,
        }
        self._probes = {name: Probe(name, check) for name, check in checks.items()}

    async def checks(self) -> Checks:
        """Return the outcomes of all checks, at most a second old, within a few seconds."""
        outcomes = await asyncio.gather(*(probe.outcome() for probe in self._probes.values()))
        checks = dict(zip(self._probes, outcomes, strict=True))
        self._log_changes(checks)
        return checks

    def _log_changes(self, checks: Checks) -> None:
        """Log each check that has begun to fail, or has stopped to, since somebody has asked last."""
        for name, check in checks.items():
            if not check.ok and name not in self._failing:
                self._failing.add(name)
                logger.warning("not ready: %s: %s", name, check.reason, extra={"action": "not_ready"})
            elif check.ok and name in self._failing:
                self._failing.discard(name)
                logger.info("ready again: %s", name, extra={"action": "ready_again"})

    async def close(self) -> None:
        """End the checks that run. Idempotent."""
        await asyncio.gather(*(probe.close() for probe in self._probes.values()))

    async def _check_disk(self) -> None:
        folders = {folder for folder in (self.store.folder, self.queue.folder) if folder is not None}
        for folder in sorted(folders):
            # A network file system may not answer, so this is not done in the event loop.
            look = partial(_problem_of_disk, folder, self.min_free_disk_bytes)
            _raise(await in_own_thread("disk-check", look))

    async def _check_dispatch(self) -> None:
        _raise(self.relay.problem(stalled_after=STALLED_SECONDS))

    async def _check_process(self) -> None:
        for part in self.parts:
            if part.done():
                error = None if part.cancelled() else part.exception()
                raise UnavailableError(
                    f"the part {part.get_name()!r} of the control plane has ended: {error!r}; restart it"
                )
        free = free_descriptors()
        if free is not None:
            _raise(descriptor_problem(*free))


def _problem_of_disk(folder: Path, min_free: int) -> str | None:
    try:
        stat = os.statvfs(folder)
    except OSError as exc:
        return f"the folder {folder} cannot be read: {exc.strerror}"
    return disk_problem(
        str(folder),
        free=stat.f_bavail * stat.f_frsize,
        size=stat.f_blocks * stat.f_frsize,
        min_free=min_free,
        # Some file systems do not count files, and say that they have none.
        free_files=stat.f_favail if stat.f_files else None,
    )


def _raise(problem: str | None) -> None:
    if problem is not None:
        raise UnavailableError(problem)
