"""People have been asked, and then a new version of the workflow is deployed: nobody's answer is lost."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.llamactl import ANY_PORTS, PATIENCE, Process, llamactl, started
from workflows.events import HumanResponseEvent

from llama_deploy import Client
from llama_deploy.client import TaskHandle
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import TaskStatus

APPROVALS = 20
PARK_SOON = {"LLAMA_DEPLOY_WF_SERVICE_IDLE_TIMEOUT": "0.05"}
OLD = """
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


class Decided(Event):
    n: int
    response: str


class Approve(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Decided:
        question = InputRequiredEvent(prefix="Granted?")
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=question)
        return Decided(n=ev.n, response=answer.response)

    @step
    async def decide(self, ev: Decided) -> StopEvent:
        return StopEvent(result=[ev.n, ev.response, "VERSION"])
"""
RENAMED = OLD.replace("def ask", "def request").replace("VERSION", "renamed")
WITH_A_STEP_MORE = OLD.replace(
    'StopEvent(result=[ev.n, ev.response, "VERSION"])', "Recorded(n=ev.n, response=ev.response)"
).replace(
    "async def decide(self, ev: Decided) -> StopEvent", "async def decide(self, ev: Decided) -> Recorded"
)
WITH_A_STEP_MORE = (
    WITH_A_STEP_MORE.replace("class Approve", "class Recorded(Decided):\n    pass\n\n\nclass Approve")
    + """
    @step
    async def record(self, ev: Recorded) -> StopEvent:
        return StopEvent(result=[ev.n, ev.response, "recorded"])
"""
)
PROGRAMS = {"old": OLD.replace("VERSION", "old"), "renamed": RENAMED, "more": WITH_A_STEP_MORE}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@contextmanager
def worker(folder: Path, url: str, *targets: str) -> Iterator[Process]:
    options = ("--json", "--processes", "0")
    with started(folder, "-s", url, "worker", *targets, *options, env=PARK_SOON) as process:
        process.line()
        yield process


async def asked(client: Client, service: str) -> list[TaskHandle]:
    """Return tasks that wait for their answers."""
    tasks = [await client.submit(service, n=n) for n in range(APPROVALS)]

    async def all_wait() -> bool:
        return all([await task.status() is TaskStatus.WAITING for task in tasks])

    await eventually(all_wait, seconds=PATIENCE)
    return tasks


async def answered(tasks: Sequence[TaskHandle], *, first: int = 0) -> list[str]:
    """Answer tasks, check their results, and return the versions that have given them."""
    for task in tasks:
        await task.send(HumanResponseEvent(response="granted"))
    results: list[list[Any]] = [await task.result(timeout=PATIENCE) for task in tasks]
    assert [each[:2] for each in results] == [[n, "granted"] for n in range(first, first + len(tasks))]
    return sorted({each[2] for each in results})


async def stranded(client: Client) -> dict[str, int]:
    """Return how many tasks of the service `renamed` are stranded, by the reason."""
    [service] = [each for each in await client.core.services.list() if each.service_name == "renamed"]
    return {each.reason: each.count for each in service.stranded}


async def test_a_deployment_harms_no_approval(folder: Path) -> None:
    with started(folder, "serve", *ANY_PORTS, "--json") as plane:
        url = json.loads(plane.line())["control_plane_url"]
        async with Client(control_plane_url=url, timeout=PATIENCE) as client:
            with worker(folder, url, "added=old:Approve", "renamed=old:Approve") as old:
                added, first = await asked(client, "added"), await asked(client, "renamed")
                second = await asked(client, "renamed")
                with worker(folder, url, "added=more:Approve", "renamed=renamed:Approve"):
                    half = APPROVALS // 2
                    assert set(await answered(added[:half])) <= {"old", "recorded"}
                    assert await answered(first) == ["old"]
                    assert await stranded(client) == {}
                    assert old.end(signal.SIGTERM)[0] == 0
                    assert await answered(added[half:], first=half) == ["recorded"]

                    [(reason, count)] = (await stranded(client)).items()
                    assert "step 'ask' does not exist in this version" in reason
                    assert count == APPROVALS
                    with worker(folder, url, "renamed=old:Approve"):
                        assert await stranded(client) == {}
                        assert await answered(second[:half]) == ["old"]
                    await moved(folder, url, client, second[half:])
                    assert await answered(second[half:], first=half) == ["renamed"]


async def moved(folder: Path, url: str, client: Client, tasks: Sequence[TaskHandle]) -> None:
    """Let tasks begin again with the only living version, after a try to continue them with it."""

    async def are_stranded() -> bool:
        return sum((await stranded(client)).values()) == len(tasks)

    await eventually(are_stranded, seconds=PATIENCE)
    facts = json.loads(llamactl(folder, "status", "--json", server=url).stdout)
    [service] = [each for each in facts["services"] if each["service_name"] == "renamed"]
    assert sum(each["count"] for each in service["stranded"]) == len(tasks)
    [version] = service["versions"]
    command = ("tasks", "move", tasks[0].task_id, "--to", version[:12])
    refused = llamactl(folder, *command, server=url)
    assert refused.returncode == 1
    assert "step 'ask' does not exist" in refused.stderr
    assert llamactl(folder, *command, "--from", "start", server=url).returncode == 0
    for task in tasks[1:]:
        await task.move(version[:12], origin="start")
