"""`/health/ready` of `llamactl worker` and `llamactl serve`, seen from outside."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.e2e.llamactl import PATIENCE, llamactl
from tests.e2e.supervised_commands import LONG, Running, project_in, serving, working

from llama_deploy import Client
from llama_deploy.testing.conditions import eventually

soon = partial(eventually, seconds=2 * PATIENCE)
DOES = ("does=supervised:does",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with workflows in it."""
    return project_in(tmp_path)


async def probe(url: str) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.json()


async def until_ready(url: str) -> None:
    async def is_ready() -> bool:
        return (await probe(url))[0] == 200

    await soon(is_ready)


async def until_failing(url: str, reason: str) -> None:
    """Wait until a check fails for this reason."""

    async def fails() -> bool:
        status, body = await probe(url)
        return any(reason in check["reason"] for check in body["checks"].values()) and status == 503

    await soon(fails)


def health_url(worker: Running) -> str:
    return str(worker.facts["health_url"])


async def test_a_worker_tells_how_its_processes_are_doing(folder: Path) -> None:
    with (
        serving(folder, targets=()) as plane,
        working(folder, plane.url, "--port", "0", targets=DOES) as worker,
    ):
        url = health_url(worker)
        await until_ready(url)
        async with Client(plane.url) as client:
            await client.submit("does", name="a", what="wait", seconds=5)
            await until_failing(url, "by the step 'act' of task")
            await until_ready(url)
        (child,) = worker.children()
        os.kill(child, signal.SIGSTOP)
        await until_failing(url, "it is stopped")
        os.kill(child, signal.SIGCONT)
        await until_ready(url)
        os.kill(plane.pid, signal.SIGKILL)
        await until_failing(url, "the control plane does not answer its heartbeats")
        await until_failing(url, "the message queue does not answer")
        assert (await probe(url.replace("ready", "live")))[0] == 200
        taken = url.split("/")[2].partition(":")[2]
        again = llamactl(folder, "worker", *DOES, "--port", taken, server=plane.url)
        assert (again.returncode, "another process uses this port" in again.stderr) == (1, True)


async def test_a_worker_in_one_process_answers_while_a_step_blocks_it(folder: Path) -> None:
    env = {"LLAMA_DEPLOY_WF_SERVICE_PORT": "0", "LLAMA_DEPLOY_WF_SERVICE_BLOCKED_LIMIT": "3"}
    with (
        serving(folder, targets=()) as plane,
        working(folder, plane.url, "--processes", "0", env=env, targets=DOES) as worker,
    ):
        url = health_url(worker)
        await until_ready(url)
        async with Client(plane.url) as client:
            await client.submit("does", name="a", what="wait", seconds=LONG)
            await until_failing(url, "the event loop has been blocked for")
            await until_failing(url.replace("ready", "live"), "restart this process")


async def test_serve_tells_how_its_processes_are_doing(folder: Path) -> None:
    with serving(folder, targets=DOES) as served:
        url = f"{served.url}/health/ready"
        await until_ready(url)
        (child,) = served.children()
        os.kill(child, signal.SIGSTOP)
        await until_failing(url, "it is stopped")
        os.kill(child, signal.SIGKILL)
        await soon(lambda: child not in served.children())
        await until_ready(url)


def test_probes_are_answered_to_other_machines_only_if_asked_for(folder: Path) -> None:
    done = llamactl(folder, "worker", *DOES, "--port", "0", "--host", "0.0.0.0")  # noqa: S104
    assert done.returncode == 2
    assert "--allow-remote" in done.stderr
    done = llamactl(folder, "worker", *DOES, "--host", "127.0.0.1")
    assert (done.returncode, "--host has no effect without --port" in done.stderr) == (2, True)
