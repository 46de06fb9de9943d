"""Programs of many shapes are killed in their middle, all at once; their results and events are the same."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from llama_deploy import Client
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import Durability
from tests.e2e.llamactl import ANY_PORTS, Process, started
from tests.programs.catalog import PROGRAMS as ALL
from tests.programs.runs import (
    PATIENCE,
    Outside,
    Run,
    Served,
    compare_calls_after_kill,
    compare_events_after_kill,
    compare_results,
    run_plainly,
)

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
PROGRAMS = [program for program in ALL if program.is_killed]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory for the programs, which import each other from the root of the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("CONTROL_PLANE_LEASE_SECONDS", "3")
    return tmp_path


@pytest.fixture
def outside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Outside:
    calls = folder / "outside"
    calls.mkdir()
    monkeypatch.setenv("OUTSIDE", str(calls))
    return Outside(calls)


def worker(folder: Path, url: str) -> AbstractContextManager[Process]:
    """Start the process that hosts all programs."""
    return started(folder, "-s", url, "worker", *(program.target for program in PROGRAMS), "--json")


async def is_ready(process: Process) -> None:
    await asyncio.to_thread(process.line, seconds=PATIENCE)


def is_in_middle(served: Served, outside: Outside) -> bool:
    """Return whether a program has come to where it is killed."""
    if served.program.held_call is not None:
        return outside.count("begin", served.program.held_call) > 0
    return any(event.type in served.plain.questions for event in served.run.events)


async def until_all_are_in_the_middle(
    served: Sequence[Served], runs: Sequence[asyncio.Task[Run]], outside: Outside
) -> None:
    def not_there() -> list[str]:
        ended = [each for each in runs if each.done()]
        assert not ended, f"these end before their middle: {ended}"
        return [each.program.name for each in served if not is_in_middle(each, outside)]

    try:
        await eventually(lambda: not not_there(), seconds=PATIENCE)
    except TimeoutError:
        pytest.fail(f"these do not come to their middle: {', '.join(not_there())}")


async def run_and_kill(
    folder: Path, outside: Outside, plain: Sequence[Run]
) -> tuple[list[Run | BaseException], list[int]]:
    """Run all programs, and kill their process when each of them is in its middle.

    Returns:
        The runs, and how many events of each were seen before.
    """
    with ExitStack() as stack:
        core = stack.enter_context(started(folder, "serve", *ANY_PORTS, "--json"))
        url = json.loads(core.line())["control_plane_url"]
        first = stack.enter_context(worker(folder, url))
        await is_ready(first)
        async with Client(url, timeout=PATIENCE) as client:
            served = [Served(client, each, run) for each, run in zip(PROGRAMS, plain, strict=True)]
            for each in served:
                # The others are killed while they wait for their first answer.
                if each.program.held_call is not None:
                    outside.hold(each.program.held_call)
                    each.may_answer.set()
            runs = [asyncio.create_task(each.finish(), name=each.program.name) for each in served]
            await until_all_are_in_the_middle(served, runs, outside)
            seen = [len(each.run.events) for each in served]
            first.process.kill()
            outside.release()
            for each in served:
                each.may_answer.set()
            await is_ready(stack.enter_context(worker(folder, url)))
            return await asyncio.gather(*runs, return_exceptions=True), seen


# The programs and the libraries that they use may warn.
@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(300)
async def test_a_killed_program_ends_as_if_it_had_not_been(
    folder: Path, outside: Outside, subtests: pytest.Subtests
) -> None:
    plain = [await run_plainly(program) for program in PROGRAMS]
    returned = {program.calls: outside.returned(program.calls) for program in PROGRAMS}
    outside.forget()
    ended, seen = await run_and_kill(folder, outside, plain)
    for program, expected, run, before in zip(PROGRAMS, plain, ended, seen, strict=True):
        with subtests.test(program.name):
            if isinstance(run, BaseException):
                raise run
            compare_results(program, expected, run)
            compare_events_after_kill(program, expected, run, before)
            assert run.view is not None
            assert (run.view.durability, run.view.attempt) == (program.durability, 2), run.view
            assert program.held_call is None or outside.count("begin", program.held_call) >= 2
            if program.durability is Durability.STEP:
                compare_calls_after_kill(
                    returned[program.calls], outside.returned(program.calls), program.repeated_calls
                )
