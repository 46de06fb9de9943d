"""Programs of many shapes are served as they are: the same results and events as `await workflow.run()`."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from tests.e2e.llamactl import ANY_PORTS, started
from tests.programs.catalog import PROGRAMS, Program
from tests.programs.runs import PATIENCE, Run, Served, compare_events, compare_results, run_plainly

from llama_deploy import Client

ROOT = Path(__file__).parents[2]
TARGETS = [program.target for program in PROGRAMS]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory for the programs, which import each other from the root of the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


async def run_served(client: Client, program: Program, plain: Run) -> Run:
    served = Served(client, program, plain)
    served.may_answer.set()
    return await served.finish()


# The programs and the libraries that they use may warn.
@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(300)
async def test_a_program_is_served_as_it_is(folder: Path, subtests: pytest.Subtests) -> None:
    plain = {program.name: await run_plainly(program) for program in PROGRAMS}
    with started(folder, "serve", *TARGETS, *ANY_PORTS, "--json") as process:
        url = json.loads(process.line(seconds=PATIENCE))["control_plane_url"]
        async with Client(url, timeout=PATIENCE) as client:
            ended = await asyncio.gather(
                *(run_served(client, each, plain[each.name]) for each in PROGRAMS), return_exceptions=True
            )
    for program, run in zip(PROGRAMS, ended, strict=True):
        with subtests.test(program.name):
            if isinstance(run, BaseException):
                raise run
            compare_results(program, plain[program.name], run)
            compare_events(program, plain[program.name], run)
            assert run.view is not None
            assert (run.view.durability, run.view.attempt) == (program.durability, 1), run.view
