"""The event loop on which `llamactl serve` and `llamactl worker` run workflows."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.e2e.conftest import PROGRAMS
from tests.e2e.llamactl import ANY_PORTS, Process, llamactl, started

SERVICES = ("loops:Nested", "loops:Leaves", "loops:Exits", "loops:Exhausts")

PATCHED = """
import asyncio, nest_asyncio, uvloop
from loops import *
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working directory with two modules of the same workflows; one of them imports nest_asyncio."""
    shutil.copy(PROGRAMS / "loops.py", tmp_path)
    (tmp_path / "patched.py").write_text(PATCHED)
    return tmp_path


@contextmanager
def serving(project: Path, *arguments: str) -> Iterator[tuple[Process, str]]:
    with started(project, "serve", *arguments, *ANY_PORTS, "--json") as process:
        yield process, json.loads(process.line())["control_plane_url"]
        assert process.end(signal.SIGINT)[0] == 0


def test_a_module_that_imports_nest_asyncio_gets_a_loop_that_it_can_patch(project: Path) -> None:
    with serving(project, "patched:Nested") as (_, server):
        done = llamactl(project, "run", "Nested", server=server)
        assert done.stdout.endswith("84 asyncio\n"), done.stderr


def test_nothing_that_a_step_leaves_behind_ends_the_process(project: Path) -> None:
    with serving(project, *SERVICES) as (process, server):
        left = llamactl(project, "run", "Leaves", server=server)
        assert left.stdout.endswith("uvloop\n"), left.stderr
        grouped = llamactl(project, "run", "Exits", server=server)
        assert grouped.returncode == 1
        assert "SystemExit" in grouped.stderr
        exhausted = llamactl(project, "-t", "10", "run", "Exhausts", server=server)
        assert "RuntimeError: a function in a thread raised StopIteration" in exhausted.stderr
        # It is imported too late for the loop to be chosen by it.
        nested = llamactl(project, "run", "Nested", server=server)
        assert "start llamactl with `--loop asyncio`" in nested.stderr
        assert "a task that a workflow has started raised SystemExit" in process.errors.read_text()


def test_the_loop_can_be_chosen(project: Path) -> None:
    with serving(project, "--loop", "asyncio", *SERVICES) as (_, server):
        done = llamactl(project, "run", "Nested", server=server)
        assert done.stdout.endswith("84 asyncio\n"), done.stderr
        assert llamactl(project, "run", "Leaves", server=server).returncode == 0
    wrong = llamactl(project, "worker", "--loop", "trio", "loops:Leaves")
    assert wrong.returncode == 2
    assert "'trio' is not one of 'auto', 'asyncio', 'uvloop'" in wrong.stderr
