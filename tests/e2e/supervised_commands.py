"""`llamactl serve` and `llamactl worker` with the workflows of `programs/supervised.py`, and their ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from tests.e2e.llamactl import ANY_PORTS, PATIENCE, Process, started

from llama_deploy.testing.conditions import eventually

PROGRAM = Path(__file__).parent / "programs" / "supervised.py"
TARGETS = tuple(f"{name}=supervised:{name}" for name in ("does", "does_in_thread", "sleeps", "never_ends"))
LONG_LEASE = {"CONTROL_PLANE_LEASE_SECONDS": "90"}
"""What does not wait for the end of a lease is done within `PATIENCE`."""
SHORT_LEASE = {"CONTROL_PLANE_LEASE_SECONDS": "1"}
LONG = 300
"""Seconds for which no test waits."""

soon = partial(eventually, seconds=PATIENCE)


def project_in(path: Path) -> Path:
    """Make a directory a working directory with workflows in it."""
    shutil.copy(PROGRAM, path)
    return path


@dataclass(frozen=True, slots=True)
class Noted:
    """A line of the ledger."""

    word: str
    name: str
    pid: int
    at: float


@dataclass(frozen=True, slots=True)
class Running:
    """A command that runs."""

    process: Process
    facts: dict[str, Any]
    folder: Path

    @property
    def pid(self) -> int:
        return self.process.process.pid

    @property
    def url(self) -> str:
        return str(self.facts["control_plane_url"])

    @property
    def log(self) -> str:
        return self.process.errors.read_text()

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.pid).children()]

    def noted(self, word: str, name: str | None = None) -> list[Noted]:
        return [each for each in ledger(self.folder) if each.word == word and name in {None, each.name}]

    async def begun(self, name: str, times: int = 1) -> Noted:
        """Wait until a task has begun, and return the last time."""
        await soon(lambda: len(self.noted("begin", name)) >= times)
        return self.noted("begin", name)[-1]


def ledger(folder: Path) -> list[Noted]:
    path = folder / "ledger.txt"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [Noted(word, name, int(pid), float(at)) for word, name, pid, at in lines]


@contextmanager
def serving(
    folder: Path, *options: str, env: Mapping[str, str] | None = None, targets: tuple[str, ...] = TARGETS
) -> Iterator[Running]:
    with started(folder, "serve", *targets, *ANY_PORTS, "--json", *options, env=env) as process:
        yield Running(process, json.loads(process.line()), folder)


@contextmanager
def working(
    folder: Path,
    server: str,
    *options: str,
    env: Mapping[str, str] | None = None,
    targets: tuple[str, ...] = TARGETS,
) -> Iterator[Running]:
    with started(folder, "-s", server, "worker", *targets, "--json", *options, env=env) as process:
        yield Running(process, json.loads(process.line()), folder)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def gone(pids: list[int], *, seconds: float = PATIENCE) -> None:
    await eventually(lambda: not any(is_alive(pid) for pid in pids), seconds=seconds)
