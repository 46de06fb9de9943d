"""A task that ends its processes: it fails, and its neighbours succeed, although they lose processes too."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.e2e.supervised_commands import Running, project_in, serving, soon, working
from tests.figures import Tell

from llama_deploy import Client
from llama_deploy.client import TaskHandle
from llama_deploy.errors import TaskFailedError

TARGETS = ("does=supervised:does", "sleeps=supervised:sleeps")
LEASE = {"CONTROL_PLANE_LEASE_SECONDS": "3"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with workflows in it."""
    return project_in(tmp_path)


async def submit_innocents(client: Client, count: int, *, seconds: float) -> list[TaskHandle]:
    """Submit tasks that fail if they are charged once."""
    names = [f"innocent-{n}" for n in range(count)]
    return [await client.submit("sleeps", name=name, seconds=seconds, max_attempts=1) for name in names]


async def submit_poison(client: Client, *, max_attempts: int) -> TaskHandle:
    """Submit a task that ends its process at once."""
    return await client.submit(
        "does", name="poison", what="end_process", seconds=0, max_attempts=max_attempts
    )


async def assert_only_the_poison_fails(poison: TaskHandle, innocents: list[TaskHandle], *, why: str) -> None:
    with pytest.raises(TaskFailedError) as failed:
        await poison.result()
    assert failed.value.error_type == "llama_deploy.errors.AttemptsExhaustedError"
    assert re.search(why, str(failed.value))
    for number, handle in enumerate(innocents):
        assert await handle.result() == f"innocent-{number}"


async def test_with_a_supervisor_suspects_run_in_a_process_of_their_own(folder: Path, tell: Tell) -> None:
    with serving(folder, "--processes", "2", env=LEASE, targets=TARGETS) as served:
        first = sorted(served.children())
        async with Client(served.url) as client:
            innocents = await submit_innocents(client, 3, seconds=1.5)
            await soon(lambda: len(served.noted("begin")) >= 3)
            poison = await submit_poison(client, max_attempts=2)
            await assert_only_the_poison_fails(poison, innocents, why=r"2 processes .* alone.* exit code 0")
            begun = served.noted("begin", "poison")
            assert len(begun) == 4, "twice with neighbours, twice alone"
            assert f"task {poison.task_id} runs alone in process {begun[-1].pid}" in served.log
            assert not {each.pid for each in begun[2:]} & set(first)
            assert "takes no new tasks" not in served.log, "it need not step back"
            await soon(lambda: "because none waits" in served.log)
            await soon(lambda: len(served.children()) == 2)
            tell(f"poison and 3 innocents of 1.5 s: {served.noted('end')[-1].at - begun[0].at:.1f} s")


async def test_without_a_supervisor_a_process_steps_back_for_each_suspect(folder: Path, tell: Tell) -> None:
    with ExitStack() as stack:
        plane = stack.enter_context(serving(folder, env=LEASE, targets=()))

        def work() -> Running:
            return stack.enter_context(
                working(folder, plane.url, "--processes", "0", env=LEASE, targets=TARGETS)
            )

        async with Client(plane.url) as client:
            workers = [await asyncio.to_thread(work)]
            innocents = await submit_innocents(client, 2, seconds=1.5)
            await soon(lambda: len(plane.noted("begin")) >= 2)
            poison = await submit_poison(client, max_attempts=1)
            for deaths in (1, 2, 3):
                await plane.begun("poison", times=deaths)
                workers.append(await asyncio.to_thread(work))
            await assert_only_the_poison_fails(poison, innocents, why=r"1 process .* alone")
            assert len(plane.noted("begin", "poison")) == 3
            assert "takes no new tasks until it has run a task of service does alone" in workers[2].log
