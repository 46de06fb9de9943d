"""Tasks that are retried from one of their steps, with real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from tests.e2e.llamactl import llamactl
from tests.e2e.supervised_commands import LONG_LEASE, Running, serving, soon, working

from llama_deploy import Client
from llama_deploy.client.aio.task import TaskHandle
from llama_deploy.errors import TaskFailedError

TARGETS = ("steps=forked:Steps", "fan=forked:FansOut", "approved=forked:Approved")
ONCE = {"first": 1, "second": 1, "third": 1, "fourth": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(Path(__file__).parent / "programs" / "forked.py", tmp_path)
    return tmp_path


def begun(running: Running) -> Counter[str]:
    return Counter(each.name for each in running.noted("begin"))


async def fail(task: TaskHandle) -> str:
    with pytest.raises(TaskFailedError, match="the disk is full"):
        await task.result()
    return task.task_id


async def id_of(client: Client, task_id: str, name: str) -> str:
    """Return the id of the first run of a step."""
    steps = (await client.tasks.get(task_id)).steps or []
    return next(each.step_id for each in steps if each.step == name and each.step_id is not None)


async def test_a_fork_does_what_the_run_would_have_done_if_it_had_failed_there(folder: Path) -> None:
    with serving(folder, targets=TARGETS, env=LONG_LEASE) as plane:
        async with Client(plane.url) as client:
            task_id = await fail(await client.submit("steps"))
            (folder / "repaired").touch()
            shown = llamactl(folder, "tasks", "show", task_id, server=plane.url).stdout
            for number, name in enumerate(ONCE, start=1):
                assert any(f"1.{number}  " in line and f"  {name}  " in line for line in shown.splitlines())
            # The first step begins with the state of the session, so before others have changed it.
            for number, name in enumerate(ONCE, start=1):
                step_id = await id_of(client, task_id, name)
                assert step_id == f"1.{number}"
                before = begun(plane)
                command = ("tasks", "retry", task_id, "--from", step_id, "--json")
                done = llamactl(folder, *command, server=plane.url)
                assert (done.returncode, done.stderr) == (0, "")
                view = json.loads(done.stdout)
                assert (view["retry_of"], view["retry_from"]) == (task_id, step_id)
                assert await client.task(view["task_id"]).result() == ONCE
                assert begun(plane) - before == Counter(list(ONCE)[number - 1 :])


async def test_a_killed_worker_continues_a_fork_after_its_last_finished_step(folder: Path) -> None:
    with (
        serving(folder, targets=(), env=LONG_LEASE) as plane,
        working(folder, plane.url, targets=TARGETS) as worker,
    ):
        async with Client(plane.url) as client:
            task_id = await fail(await client.submit("steps"))
            (folder / "repaired").touch()
            (folder / "slow").touch()
            again = await client.task(task_id).retry(from_="1.2")
            await soon(lambda: begun(worker)["third"] == 2)
            os.kill(worker.noted("begin")[-1].pid, signal.SIGKILL)
            await soon(lambda: begun(worker)["third"] == 3)
            (folder / "slow").unlink()
            assert await again.result() == ONCE
            assert (await again.info()).attempt == 2
            assert begun(worker) == {"first": 1, "second": 2, "third": 3, "fourth": 2}


async def test_a_killed_control_plane_forgets_no_fork(folder: Path) -> None:
    store = ("--data-dir", str(folder / "data"))
    with serving(folder, *store, targets=TARGETS, env=LONG_LEASE) as first:
        async with Client(first.url) as client:
            task_id = await fail(await client.submit("steps"))
            (folder / "repaired").touch()
            (folder / "slow").touch()
            await client.tasks.retry(task_id, from_="1.3", new_task_id="again")
            await soon(lambda: begun(first)["third"] == 2)
        os.killpg(first.pid, signal.SIGKILL)
        first.process.process.wait()
    (folder / "slow").unlink()
    with serving(folder, *store, targets=TARGETS, env=LONG_LEASE) as second:
        async with Client(second.url) as client:
            again = await client.tasks.retry(task_id, from_="1.3", new_task_id="again")
            assert await again.result() == ONCE
            assert begun(second) == {"first": 1, "second": 1, "third": 3, "fourth": 2}


async def test_a_fork_of_a_fan_out_runs_its_parts_again(folder: Path) -> None:
    parts = Counter(f"work-{number}" for number in range(8))
    with serving(folder, targets=TARGETS, env=LONG_LEASE) as plane:
        async with Client(plane.url) as client:
            task_id = await fail(await client.submit("fan"))
            (folder / "repaired").touch()
            for name, runs in (("finish", Counter[str]()), ("work", parts)):
                before = begun(plane)
                again = await client.tasks.retry(task_id, from_=await id_of(client, task_id, name))
                assert await again.result() == {"split": 1, "finish": 1}
                assert begun(plane) - before == runs + Counter(["finish"])


@pytest.mark.parametrize("idle_timeout", ["0", "60"], ids=["parked", "in memory"])
async def test_an_approval_before_the_step_counts_and_one_after_it_is_asked_again(
    folder: Path, idle_timeout: str
) -> None:
    env = {**LONG_LEASE, "LLAMA_DEPLOY_WF_SERVICE_IDLE_TIMEOUT": idle_timeout}
    with serving(folder, targets=TARGETS, env=env) as plane:
        async with Client(plane.url) as client:
            task = await client.submit("approved")
            await approve(client, task.task_id, "plan?", by="ann")
            await approve(client, task.task_id, "draft?", by="bob")
            task_id = await fail(task)
            (folder / "repaired").touch()

            again = await client.tasks.retry(task_id, from_=await id_of(client, task_id, "draft"))
            await approve(client, again.task_id, "draft?", by="cid")
            counted = ["plan", "plan-by-ann", "draft", "draft-by-cid", "publish"]
            assert await again.result() == dict.fromkeys(counted, 1)

            last = await client.tasks.retry(task_id, from_=await id_of(client, task_id, "publish"))
            counted = ["plan", "plan-by-ann", "draft", "draft-by-bob", "publish"]
            assert await last.result() == dict.fromkeys(counted, 1)


async def approve(client: Client, task_id: str, question: str, *, by: str) -> None:
    """Answer the question of a task when it is asked."""
    found: list[str] = []

    async def is_asked() -> bool:
        items = (await client.inbox.page()).items
        asked = [each for each in items if (each.task_id, each.prompt) == (task_id, {"question": question})]
        found.extend(each.question_id for each in asked)
        return bool(found)

    await soon(is_asked)
    await client.inbox.answer(found[0], {"by": by})


async def test_the_command_says_what_cannot_be_forked(folder: Path) -> None:
    with serving(folder, targets=TARGETS, env=LONG_LEASE) as plane:
        async with Client(plane.url) as client:
            task_id = await fail(await client.submit("steps"))
        for words, code, said in (
            ([task_id, "--from", "1.9"], 3, "has no step 1.9 that has ended"),
            ([task_id, "--from", "second"], 2, "the step_id of one of its steps"),
            ([task_id, "number=1", "--from", "1.2"], 2, "only a retry from the start"),
            (["--service", "steps", "--from", "1.2"], 2, "names a step of one task"),
        ):
            refused = llamactl(folder, "tasks", "retry", *words, server=plane.url)
            assert refused.returncode == code, (words, refused)
            assert said in refused.stderr
