"""Tasks that are retried by hand, with real processes."""

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
from llama_deploy.errors import TaskCancelledError, TaskFailedError

TARGETS = ("steps=retried:Steps",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(Path(__file__).parent / "programs" / "retried.py", tmp_path)
    return tmp_path


def begun(running: Running) -> Counter[str]:
    return Counter(each.name for each in running.noted("begin"))


ONCE = {"first": 1, "second": 1, "third": 1}


async def fail(client: Client, number: int = 0) -> str:
    task = await client.submit("steps", number=number)
    with pytest.raises(TaskFailedError, match="the disk is full"):
        await task.result()
    return task.task_id


async def test_repaired_code_goes_on_after_the_last_finished_step(folder: Path) -> None:
    """The worker of the failed attempt is gone, and the one that goes on has new code."""
    with serving(folder, targets=(), env=LONG_LEASE) as plane:
        async with Client(plane.url) as client:
            with working(folder, plane.url, targets=TARGETS) as worker:
                task_id = await fail(client)
                assert worker.process.end(signal.SIGTERM)[0] == 0
            program = folder / "retried.py"
            program.write_text(program.read_text().replace('"the disk is full"', '"still full"'))
            (folder / "repaired").touch()
            with working(folder, plane.url, targets=TARGETS) as worker:
                again = await client.tasks.retry(task_id)
                assert await again.result() == 4
                view = await client.tasks.get(again.task_id)
                assert (view.retry_of, view.retry_from) == (task_id, "last_step")
                assert begun(worker) == {**ONCE, "fourth": 2}


async def test_a_killed_worker_does_not_make_a_retry_begin_again(folder: Path) -> None:
    with (
        serving(folder, targets=(), env=LONG_LEASE) as plane,
        working(folder, plane.url, targets=TARGETS) as worker,
    ):
        async with Client(plane.url) as client:
            task_id = await fail(client)
            (folder / "repaired").touch()
            (folder / "slow").touch()
            again = await client.task(task_id).retry()
            await soon(lambda: begun(worker)["fourth"] == 2)
            os.kill(worker.noted("begin")[-1].pid, signal.SIGKILL)
            await soon(lambda: begun(worker)["fourth"] == 3)
            (folder / "slow").unlink()
            assert await again.result() == 4
            assert (await again.info()).attempt == 2
            assert begun(worker) == {**ONCE, "fourth": 3}


async def test_a_killed_control_plane_forgets_no_retry(folder: Path) -> None:
    store = ("--data-dir", str(folder / "data"))
    with serving(folder, *store, targets=TARGETS, env=LONG_LEASE) as first:
        async with Client(first.url) as client:
            task_id = await fail(client)
        (folder / "repaired").touch()
        (folder / "slow").touch()
        async with Client(first.url) as client:
            await client.tasks.retry(task_id, new_task_id="again")
        await soon(lambda: begun(first)["fourth"] == 2)
        os.killpg(first.pid, signal.SIGKILL)
        first.process.process.wait()
    (folder / "slow").unlink()
    with serving(folder, *store, targets=TARGETS, env=LONG_LEASE) as second:
        async with Client(second.url) as client:
            again = await client.tasks.retry(task_id, new_task_id="again")
            assert await again.result() == 4
        assert begun(second) == {**ONCE, "fourth": 3}


async def test_the_command_retries_one_task(folder: Path) -> None:
    with serving(folder, targets=TARGETS, env=LONG_LEASE) as plane:
        async with Client(plane.url) as client:
            task_id = await fail(client, 5)
            (folder / "repaired").touch()

            done = llamactl(folder, "tasks", "retry", task_id, "--task-id", "again", server=plane.url)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.startswith(f"Task again retries task {task_id}; it is ")
            assert await client.task("again").result() == 9
            assert begun(plane) == {**ONCE, "fourth": 2}

            changed = llamactl(
                folder, "tasks", "retry", task_id, "number=10", "--from", "start", "--json", server=plane.url
            )
            view = json.loads(changed.stdout)
            assert view["retry_of"] == task_id
            assert await client.task(view["task_id"]).result() == 14

            for words, code, said in (
                (["again"], 1, "has succeeded"),
                ([task_id, "number=1"], 2, "only a retry from the start"),
                (["unknown"], 3, "there is no task unknown"),
                ([], 2, "there is no task to retry"),
                ([task_id, "--service", "steps"], 2, "a task and a filter"),
                (["--service", "steps", "--yes", "--dry-run"], 2, "contradict"),
                (["--status", "ended"], 2, "status"),
            ):
                refused = llamactl(folder, "tasks", "retry", *words, server=plane.url)
                assert refused.returncode == code, (words, refused)
                assert said in refused.stderr


async def test_the_command_changes_all_tasks_of_a_filter(folder: Path) -> None:
    with serving(folder, targets=TARGETS, env=LONG_LEASE) as plane:
        async with Client(plane.url) as client:
            ids = [await fail(client, number) for number in range(3)]
            (folder / "repaired").touch()
            every = ("tasks", "retry", "--service", "steps")

            dry = llamactl(folder, *every, server=plane.url)
            assert dry.returncode == 0
            assert dry.stdout.splitlines()[-2:] == [
                "3 tasks would be retried, 0 skipped.",
                "Nothing was changed. Run the command with --yes to do it.",
            ]
            (told,) = map(
                json.loads, llamactl(folder, *every, "--json", server=plane.url).stdout.splitlines()
            )
            assert sorted(item["task_id"] for item in told["items"]) == sorted(ids)

            done = llamactl(folder, *every, "--yes", "--json", server=plane.url)
            batch = json.loads(done.stdout)
            handles = [client.task(item["new_task_id"]) for item in batch["items"]]
            assert sorted([await handle.result() for handle in handles]) == [4, 5, 6]
            assert begun(plane) == {"first": 3, "second": 3, "third": 3, "fourth": 6}

            again = llamactl(folder, *every, "--yes", server=plane.url)
            assert again.stdout.splitlines()[-1] == "0 tasks retried, 3 skipped."
            assert "was retried before" in again.stdout

            (folder / "slow").touch()
            running = await client.submit("steps")
            await soon(lambda: begun(plane)["fourth"] == 7)
            stopped = llamactl(folder, "tasks", "cancel", "--service", "steps", "--yes", server=plane.url)
            assert stopped.stdout.splitlines()[-1] == "1 task cancelled, 0 skipped."
            with pytest.raises(TaskCancelledError):
                await running.result()


async def test_a_task_is_taken_from_one_system_to_another(folder: Path, tmp_path: Path) -> None:
    with (
        serving(folder, targets=TARGETS, env=LONG_LEASE) as plane,
        serving(folder, "--data-dir", str(tmp_path / "other"), targets=(), env=LONG_LEASE) as other,
    ):
        async with Client(plane.url) as client:
            task_id = await fail(client)
        document = llamactl(folder, "tasks", "export", task_id, server=plane.url).stdout
        (folder / "run.json").write_text(document)
        done = llamactl(folder, "tasks", "import", "run.json", server=other.url)
        assert done.stdout == f"Stored a copy as task {task_id}; its status is failed.\n"
        copied = llamactl(
            folder, "tasks", "import", "run.json", "--task-id", "copy", "--json", server=other.url
        )
        assert json.loads(copied.stdout)["task_id"] == "copy"
        newer = json.dumps({**json.loads(document), "format": 2})
        (folder / "newer.json").write_text(newer)
        for name, code, said in (
            ("missing.json", 2, "cannot read"),
            ("newer.json", 2, "format 2 and this release reads format 1"),
        ):
            refused = llamactl(folder, "tasks", "import", name, "--task-id", "new", server=other.url)
            assert (refused.returncode, said in refused.stderr) == (code, True), refused
        async with Client(other.url) as client:
            assert {task.task_id for task in (await client.tasks.list()).items} == {task_id, "copy"}
