"""`/metrics` of `llamactl serve` and `llamactl worker` shows all their processes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.llamactl import PATIENCE
from tests.e2e.supervised_commands import LONG, project_in, serving, working

from llama_deploy import Client
from llama_deploy.testing.conditions import eventually

soon = partial(eventually, seconds=2 * PATIENCE)
DOES = ("does=supervised:does",)
ENDED = "llama_deploy_worker_attempts_total"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with workflows in it."""
    return project_in(tmp_path)


async def samples(url: str, name: str) -> dict[str | None, float]:
    """Return the values of a metric by process, of all its other labels together."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        text = await response.text()
    found: dict[str | None, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                process = sample.labels.get("process")
                found[process] = found.get(process, 0.0) + sample.value
    return found


async def run_some(url: str, count: int) -> None:
    async with Client(url) as client:
        for number in range(count):
            await client.run("does", name=f"n{number}", what="wait", seconds=0)


async def test_serve_shows_each_of_its_processes(folder: Path) -> None:
    with serving(folder, "--processes", "2", targets=DOES) as served:
        url = f"{served.url}/metrics"
        await run_some(served.url, 4)

        async def all_are_counted() -> bool:
            found = await samples(url, ENDED)
            return set(found) <= {"0", "1"} and sum(found.values()) == 4

        await soon(all_are_counted)
        assert await samples(url, "llama_deploy_worker_slots") == {"0": 8.0, "1": 8.0}
        assert await samples(url, "llama_deploy_process_answers") == {"0": 1.0, "1": 1.0}
        assert await samples(url, "llama_deploy_tasks_ended_total") == {None: 4.0}
        assert set(await samples(url, "process_resident_memory_bytes")) == {None, "0", "1"}


async def test_a_worker_shows_its_processes_while_one_of_them_does_not_answer(folder: Path) -> None:
    with (
        serving(folder, targets=()) as plane,
        working(folder, plane.url, "--port", "0", "--processes", "2", targets=DOES) as worker,
    ):
        url = str(worker.facts["health_url"]).replace("/health/ready", "/metrics")
        await run_some(plane.url, 2)

        async def all_are_counted() -> bool:
            return sum((await samples(url, ENDED)).values()) == 2

        await soon(all_are_counted)
        async with Client(plane.url) as client:
            # It holds the interpreter of one process.
            await client.submit("does", name="held", what="hold", seconds=LONG)
            await worker.begun("held")

            async def one_is_missing() -> bool:
                answers = await samples(url, "llama_deploy_process_answers")
                return sorted(answers.values()) == [0.0, 1.0]

            await soon(one_is_missing)
            assert len(await samples(url, "llama_deploy_worker_slots")) == 1


async def test_a_worker_in_one_process_shows_its_own(folder: Path) -> None:
    with (
        serving(folder, targets=()) as plane,
        working(folder, plane.url, "--processes", "0", "--port", "0", targets=DOES) as worker,
    ):
        url = str(worker.facts["health_url"]).replace("/health/ready", "/metrics")
        await run_some(plane.url, 1)

        async def is_counted() -> bool:
            return await samples(url, ENDED) == {None: 1.0}

        await soon(is_counted)
