"""`llamactl serve` and `llamactl worker` when processes that run steps are killed, blocked or stopped."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.e2e.llamactl import ANY_PORTS, LLAMACTL, PATIENCE, environment, llamactl, started
from tests.e2e.supervised_commands import (
    LONG,
    LONG_LEASE,
    SHORT_LEASE,
    TARGETS,
    Running,
    gone,
    is_alive,
    project_in,
    serving,
    soon,
    working,
)
from tests.faults.chaos import percentiles, quantile
from tests.figures import Tell
from tests.pulse import Pulse

from llama_deploy import Client
from llama_deploy.errors import TaskFailedError
from llama_deploy.types import TaskStatus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with workflows in it."""
    return project_in(tmp_path)


class TestAKilledChild:
    @pytest.mark.parametrize("processes", [1, 2])
    async def test_its_tasks_move_on_at_once(
        self, folder: Path, pulse: Pulse, tell: Tell, processes: int
    ) -> None:
        options = ("--processes", str(processes), "--max-concurrent-tasks", "100")
        with serving(folder, *options, env=LONG_LEASE) as served:
            assert sorted(served.facts["processes"]) == sorted(served.children())
            assert len(served.children()) == processes
            async with Client(served.url) as client:
                handles = {
                    name: await client.submit("sleeps", name=name, seconds=1)
                    for name in (f"t{n}" for n in range(100))
                }
                await soon(lambda: len(served.noted("begin")) == 100)
                victim = served.noted("begin")[-1].pid
                os.kill(victim, signal.SIGKILL)
                killed = time.monotonic()
                results = await asyncio.gather(*(handle.result() for handle in handles.values()))
                assert results == list(handles)
            ended_before = {each.name for each in served.noted("end") if each.pid == victim}
            lost = {each.name for each in served.noted("begin") if each.pid == victim} - ended_before
            again = {each.name: each.at for each in served.noted("begin") if each.at > killed}
            assert lost <= again.keys(), "what has ended may run again if nobody was told"
            gaps = [at - killed for at in again.values()]
            tell(f"tasks of a killed process, {processes} of them: next claim {percentiles(gaps)}")
            if processes > 1:
                assert pulse.idle_seconds(killed, killed + quantile(gaps, 0.99)) <= 1.5
            await soon(lambda: len(served.children()) == processes)
            assert f"process {victim} was killed by SIGKILL; another one takes its place" in served.log
            assert served.process.end(signal.SIGTERM)[0] == 0

    async def test_a_worker_replaces_it(self, folder: Path) -> None:
        with serving(folder, targets=()) as plane, working(folder, plane.url) as worker:
            async with Client(plane.url) as client:
                handle = await client.submit("sleeps", name="a", seconds=1)
                first = await worker.begun("a")
                os.kill(first.pid, signal.SIGKILL)
                assert await handle.result() == "a"
                assert (await handle.info()).attempt == 2
                second = json.loads(worker.process.line())
                assert second["processes"] == worker.children() != [first.pid]
                assert second["pid"] == worker.pid

    def test_nobody_reads_what_another_one_prints(self, folder: Path) -> None:
        with serving(folder, targets=()) as plane:
            reader, writer = os.pipe()
            with subprocess.Popen(
                [*LLAMACTL, "-s", plane.url, "worker", *TARGETS, "--json"],
                cwd=folder,
                env=environment(),
                stdout=writer,
                stderr=subprocess.PIPE,
                text=True,
            ) as worker:
                os.close(writer)
                with os.fdopen(reader) as output:
                    (first,) = json.loads(output.readline())["processes"]
                os.kill(first, signal.SIGKILL)
                asyncio.run(gone([first]))
                with Client(plane.url).sync as client:
                    assert client.run("sleeps", name="a", seconds=0) == "a"
                worker.terminate()
                _, errors = worker.communicate(timeout=PATIENCE)
            assert (worker.returncode, errors.splitlines()[-1]) == (0, "Stopped.")
            assert errors.count("takes its place") == 1

    async def test_one_that_has_ended_as_if_all_were_well(self, folder: Path) -> None:
        with serving(folder, "--processes", "2", env=LONG_LEASE) as served:
            async with Client(served.url) as client:
                handle = await client.submit("does", name="a", what="end_process", seconds=0, max_attempts=1)
                first = await served.begun("a")
                with pytest.raises(TaskFailedError, match="has ended with exit code 0"):
                    await asyncio.wait_for(handle.result(), PATIENCE)
                assert f"process {first.pid} has ended with exit code 0" in served.log


class TestAKilledSupervisor:
    @pytest.mark.parametrize("what", ["hold", "match", None])
    async def test_its_children_end_and_the_tasks_move_on(self, folder: Path, what: str | None) -> None:
        with (
            serving(folder, targets=(), env=SHORT_LEASE) as plane,
            working(folder, plane.url, "--processes", "2") as victim,
        ):
            json.loads(victim.process.line())
            children = victim.children()
            assert len(children) == 2
            async with Client(plane.url) as client:
                seconds = 6 if what == "hold" else 3
                handle = await client.submit(
                    "does" if what else "sleeps", name="a", what=what, seconds=seconds
                )
                await victim.begun("a")
                victim.process.process.kill()
                await gone(children, seconds=1)
                with started(folder, "-s", plane.url, "worker", *TARGETS) as process:
                    other = Running(process, plane.facts, folder)
                    again = await other.begun("a", times=2)
                    assert again.pid in other.children()
                    if what != "match":
                        assert await handle.result() == "a"


class TestABlockedChild:
    @pytest.mark.parametrize("service", ["does", "does_in_thread"])
    @pytest.mark.parametrize("what", ["hold", "wait"])
    async def test_it_keeps_its_lease(self, folder: Path, service: str, what: str) -> None:
        with serving(folder, "--processes", "2", env=SHORT_LEASE) as served:
            async with Client(served.url) as client:
                handle = await client.submit(service, name="a", what=what, seconds=3.5)
                assert await handle.result() == "a"
                assert (await handle.info()).attempt == 1
                assert len(served.noted("begin")) == 1
                if what == "hold":
                    step = "act" if service == "does" else "act_in_thread"
                    silent = rf"has been silent for [\d.]+ s by the step '{step}' of task {handle.task_id}"
                    assert re.search(silent, served.log)

    @pytest.mark.parametrize("what", ["match", "spin", "wait"])
    async def test_it_is_killed_after_the_limit(self, folder: Path, what: str) -> None:
        env = {**SHORT_LEASE, "LLAMA_DEPLOY_WF_SERVICE_BLOCKED_LIMIT": "2"}
        with serving(folder, "--processes", "1", env=env) as served:
            async with Client(served.url) as client:
                others = [
                    await client.submit("sleeps", name=f"other-{n}", seconds=4, max_attempts=1)
                    for n in range(2)
                ]
                await served.begun("other-1")
                handle = await client.submit("does", name="guilty", what=what, seconds=LONG, max_attempts=2)
                (first,) = {(await served.begun("guilty")).pid}
                with pytest.raises(TaskFailedError, match="blocked"):
                    await handle.result()
                begun = served.noted("begin", "guilty")
                assert len({each.pid for each in begun}) == len(begun) == 2
                assert [await other.result() for other in others] == ["other-0", "other-1"]
                assert re.search(
                    rf"process {first} was blocked for \d+ s by the step 'act' of task {handle.task_id};"
                    " another one takes its place",
                    served.log,
                )

    async def test_a_step_in_a_thread_is_not_charged_for_a_blocked_loop(self, folder: Path) -> None:
        env = {"LLAMA_DEPLOY_WF_SERVICE_BLOCKED_LIMIT": "3"}
        with serving(folder, env=env) as served:
            async with Client(served.url) as client:
                innocents = [
                    await client.submit(
                        "does_in_thread", name=f"innocent-{n}", what="wait", seconds=5, max_attempts=1
                    )
                    for n in range(2)
                ]
                await soon(lambda: len(served.noted("begin")) == 2)
                handle = await client.submit("does", name="guilty", what="wait", seconds=LONG, max_attempts=1)
                with pytest.raises(TaskFailedError, match="blocked"):
                    await handle.result()
                assert [await each.result() for each in innocents] == ["innocent-0", "innocent-1"]


class TestAPausedChild:
    async def test_its_task_moves_on_after_the_lease(self, folder: Path) -> None:
        with serving(folder, "--processes", "2", env=SHORT_LEASE) as served:
            async with Client(served.url) as client:
                handle = await client.submit("sleeps", name="a", seconds=2)
                first = await served.begun("a")
                os.kill(first.pid, signal.SIGSTOP)
                second = await served.begun("a", times=2)
                assert second.pid != first.pid
                # The lease is 1 s, and was renewed within the third of it before.
                assert second.at - first.at >= 0.6
                os.kill(first.pid, signal.SIGCONT)
                assert await handle.result() == "a"
                assert (await handle.info()).attempt == 2
                assert sorted(served.children()) == sorted(served.facts["processes"]), "it was replaced"

    async def test_a_pause_of_all_processes_is_no_blockade(self, folder: Path) -> None:
        """As Ctrl-Z in a terminal."""
        env = {"LLAMA_DEPLOY_WF_SERVICE_BLOCKED_LIMIT": "2"}
        with serving(folder, "--processes", "2", env=env) as served:
            async with Client(served.url) as client:
                handle = await client.submit("sleeps", name="a", seconds=6)
                await served.begun("a")
                children = sorted(served.children())
                os.killpg(served.pid, signal.SIGSTOP)
                await asyncio.sleep(4)  # as long as it is away
                os.killpg(served.pid, signal.SIGCONT)
                assert await handle.result() == "a"
                assert (await handle.info()).attempt == 1
                assert sorted(served.children()) == children

    async def test_a_pause_of_the_supervisor_alone(self, folder: Path) -> None:
        env = {"LLAMA_DEPLOY_WF_SERVICE_BLOCKED_LIMIT": "2"}
        with serving(folder, targets=()) as plane, working(folder, plane.url, env=env) as worker:
            async with Client(plane.url) as client:
                handle = await client.submit("sleeps", name="a", seconds=5)
                await worker.begun("a")
                os.kill(worker.pid, signal.SIGSTOP)
                assert await handle.result() == "a"
                os.kill(worker.pid, signal.SIGCONT)
                assert await client.run("sleeps", name="b", seconds=1) == "b"
                assert worker.children() == worker.facts["processes"]


BROKEN = {
    "missing": ("nowhere:does", None),
    "import error": ("broken:does", "import there_is_no_such_module"),
    "exit": ("exits:does", "raise SystemExit(0)"),
    "hard exit": ("hard:does", "import os; os._exit(7)"),
    "not a workflow": ("supervised:ACTS", None),
    "invalid": (
        "invalid:Invalid",
        "from workflows import Workflow\nclass Invalid(Workflow):\n    pass\n",
    ),
}
"""Targets that cannot be loaded, with the text of their modules."""


class TestAStart:
    @pytest.mark.parametrize("command", ["serve", "worker"])
    @pytest.mark.parametrize("kind", BROKEN)
    def test_one_that_fails_ends_the_command(self, folder: Path, command: str, kind: str) -> None:
        target, text = BROKEN[kind]
        if text is not None:
            (folder / f"{target.partition(':')[0]}.py").write_text(text)
        options = ANY_PORTS if command == "serve" else ()

        def end(processes: int) -> tuple[int, str, str]:
            done = llamactl(folder, command, target, *options, "--processes", str(processes))
            return done.returncode, done.stderr, done.stdout

        assert end(3) == end(0)

    async def test_a_child_that_dies_before_it_is_ready_is_started_again(self, folder: Path) -> None:
        with serving(folder) as served:
            (folder / "fail").touch()
            (first,) = served.children()
            os.kill(first, signal.SIGKILL)
            await soon(lambda: "because it was not ready yet" in served.log)
            async with Client(served.url) as client:
                assert await client.run("sleeps", name="a", seconds=0) == "a"
            assert "has ended with exit code 3; another one takes its place in 0.5 s" in served.log

    @pytest.mark.parametrize("command", ["serve", "worker"])
    def test_one_that_is_stopped_before_it_is_ready(self, folder: Path, command: str) -> None:
        (folder / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(300)\n")
        options = ANY_PORTS if command == "serve" else ()
        with started(folder, command, "slow:x", *options) as process:
            assert process.line() == "importing"
            os.killpg(process.process.pid, signal.SIGINT)
            code, errors = process.wait()
        assert code == 0
        assert errors.splitlines()[-1] == "Stopped."
        assert "Traceback" not in errors
        assert "Aborted" not in errors


COMMANDS = pytest.mark.parametrize("command", ["serve", "worker"])


@contextmanager
def either(
    command: str, folder: Path, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Run `serve`, or a worker for another one."""
    if command == "serve":
        with serving(folder, *options, env=env) as served:
            yield served
    else:
        with serving(folder, targets=()) as plane, working(folder, plane.url, *options, env=env) as worker:
            yield worker


class TestStopping:
    @COMMANDS
    @pytest.mark.parametrize("how", ["sigterm", "sigterm to all", "ctrl-c", "ctrl-c to one"])
    async def test_running_tasks_end_first(self, folder: Path, command: str, how: str) -> None:
        with either(command, folder) as running:
            async with Client(running.url) as client:
                handle = await client.submit("sleeps", name="a", seconds=2)
                await running.begun("a")
                send = os.killpg if how in {"sigterm to all", "ctrl-c"} else os.kill
                send(running.pid, signal.SIGTERM if "sigterm" in how else signal.SIGINT)
                if command == "worker":
                    assert await handle.result() == "a"
                    assert (await handle.info()).attempt == 1
                code, errors = running.process.wait()
            assert code == 0
            assert errors.splitlines()[-1] == "Stopped."
            assert errors.count("Waiting for running tasks") == 1
            assert "Handing back" not in errors
            assert "Traceback" not in errors
            assert len(running.noted("begin")) == len(running.noted("end")) == 1

    @COMMANDS
    async def test_the_second_ctrl_c_hands_back_and_the_third_exits(self, folder: Path, command: str) -> None:
        with either(command, folder) as running:
            async with Client(running.url) as client:
                for name in ("sleeps", "never_ends"):
                    await client.submit(name, name=name, seconds=LONG)
                    await running.begun(name)
                children = running.children()
                for said in ("Waiting for running tasks", "Handing back the running tasks"):
                    await self.press(running, said)
                await asyncio.sleep(0.3)  # presses that follow too quickly count as one
                os.killpg(running.pid, signal.SIGINT)
                code, errors = running.process.wait()
                assert code == 130
                assert "Traceback" not in errors
                await gone(children, seconds=1)

    @COMMANDS
    async def test_what_is_handed_back_is_not_charged(self, folder: Path, command: str) -> None:
        with either(command, folder) as running:
            async with Client(running.url) as client:
                handle = await client.submit("sleeps", name="a", seconds=LONG, max_attempts=1)
                await running.begun("a")
                for said in ("Waiting for running tasks", "Handing back the running tasks"):
                    await self.press(running, said)
                if command == "worker":
                    await soon(partial(self.is_queued, handle))
                code, errors = running.process.wait()
            assert code == 0
            assert errors.splitlines()[-1] == "Stopped."
            assert "killed" not in errors

    @staticmethod
    async def is_queued(handle: Any) -> bool:
        return (await handle.info()).status is TaskStatus.QUEUED

    @staticmethod
    async def press(running: Running, said: str) -> None:
        """Press Ctrl-C until it has an effect; presses that follow too quickly count as one."""

        def has_said() -> bool:
            if said in running.log:
                return True
            os.killpg(running.pid, signal.SIGINT)
            return said in running.log

        await soon(has_said)

    @COMMANDS
    @pytest.mark.parametrize(
        ("service", "what"),
        [
            ("never_ends", "nothing"),
            ("does", "hold"),
            ("does", "wait"),
            ("does", "match"),
            ("does_in_thread", "wait"),
            ("does_in_thread", "hold"),
        ],
    )
    async def test_no_step_keeps_it_longer(
        self, folder: Path, command: str, service: str, what: str, pulse: Pulse, tell: Tell
    ) -> None:
        env = {"LLAMA_DEPLOY_WF_SERVICE_DRAIN_TIMEOUT": "1"}
        with either(command, folder, env=env) as running:
            async with Client(running.url) as client:
                handle = await client.submit(service, name="a", what=what, seconds=LONG)
                await running.begun("a")
                children = running.children()
                begun = time.monotonic()
                code, errors = running.process.end(signal.SIGTERM)
                ended = time.monotonic()
                seconds = ended - begun
                tell(f"{command} stops in spite of {service} {what}: {seconds:.2f} s, drain timeout 1 s")
                # A thread that waits is left alone.
                forced = (service, what) != ("does_in_thread", "wait")
                assert code == (128 + signal.SIGTERM if forced else 0), errors
                assert pulse.idle_seconds(begun, ended) < 1 + 2 + 1, "a busy machine gets a second more"
                assert not any(map(is_alive, children))
                if command == "worker":
                    await soon(partial(self.is_queued, handle))

    @COMMANDS
    async def test_sigterm_to_a_child_drains_and_replaces_it(self, folder: Path, command: str) -> None:
        with either(command, folder) as running:
            async with Client(running.url) as client:
                handle = await client.submit("sleeps", name="a", seconds=2, max_attempts=1)
                first = await running.begun("a")
                os.kill(first.pid, signal.SIGTERM)
                assert await handle.result() == "a"
                await gone([first.pid])
                assert await client.run("sleeps", name="b", seconds=0) == "b"
                assert first.pid not in running.children()
                assert running.process.end(signal.SIGTERM)[0] == 0

    @COMMANDS
    async def test_a_child_that_is_killed_while_it_drains(self, folder: Path, command: str) -> None:
        with either(command, folder) as running:
            async with Client(running.url) as client:
                handle = await client.submit("sleeps", name="a", seconds=LONG)
                first = await running.begun("a")
                running.process.process.send_signal(signal.SIGTERM)
                await soon(lambda: "is draining" in running.log)
                os.kill(first.pid, signal.SIGKILL)
                code, _ = running.process.wait()
                assert code == 128 + signal.SIGTERM
                if command == "worker":
                    await soon(partial(self.is_queued, handle))


class TestWhatStepsStart:
    async def test_a_process_that_outlives_the_child(self, folder: Path) -> None:
        with serving(folder) as served:
            async with Client(served.url) as client:
                await client.submit("does", name="a", what="leave_process", seconds=LONG)
                first = await served.begun("a")
                left = await soon(lambda: served.noted("left"))
                await soon((folder / "left.txt").exists)
                os.kill(first.pid, signal.SIGKILL)
                await served.begun("a", times=2)
                assert is_alive(int(left[0].name))
                shown = (folder / "left.txt").read_text()
                assert "LLAMA_DEPLOY_SUPERVISOR" not in shown
                assert "llama_deploy_steps" not in shown

    async def test_a_fork_pool_that_outlives_the_child(self, folder: Path) -> None:
        with serving(folder, env=LONG_LEASE) as served:
            async with Client(served.url) as client:
                await client.submit("does", name="a", what="fork_pool", seconds=LONG)
                first = await served.begun("a")
                left = await soon(lambda: len(found := served.noted("left")) == 2 and found)
                os.kill(first.pid, signal.SIGKILL)
                await served.begun("a", times=2)
                assert all(is_alive(int(each.name)) for each in left)


def rss(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss / 2**20)


class TestASupervisor:
    async def test_its_memory(self, folder: Path, tell: Tell) -> None:
        with serving(folder, targets=(), env=SHORT_LEASE) as plane, working(folder, plane.url) as worker:
            idle = rss(worker.pid)
            async with Client(plane.url) as client:
                await client.run("does", name="a", what="hold", seconds=3)
                assert "has been silent" in worker.log
                os.kill(worker.children()[0], signal.SIGKILL)
                assert await client.run("sleeps", name="b", seconds=0) == "b"
                used = rss(worker.pid)
            tell(f"memory of a worker's supervisor: idle {idle:.1f} MB, after reports {used:.1f} MB")
            assert idle <= 35
            assert used <= 35

    def test_as_the_first_process_it_reaps_orphans(self, folder: Path) -> None:
        new_pids = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
        if shutil.which("unshare") is None or subprocess.run([*new_pids, "true"], check=False).returncode:
            if os.environ.get("CI") == "true":
                pytest.fail("this machine does not allow new namespaces of process ids")
            pytest.skip("the kernel does not allow new namespaces of process ids")
        (folder / "orphans.py").write_text(
            "import subprocess, sys\nfrom supervised import *\n"
            "for n in range(3):\n    subprocess.run(['sh', '-c', 'sleep 0.2 &'])\n"
        )
        program = (*new_pids, *LLAMACTL)
        with started(folder, "serve", "orphans:sleeps", *ANY_PORTS, "--json", program=program) as process:
            facts = json.loads(process.line())
            assert facts["pid"] == 1
            (first,) = [
                child
                for child in psutil.Process(process.process.pid).children(recursive=True)
                if child.ppid() == process.process.pid
            ]

            def zombies() -> list[str]:
                return [
                    each.name()
                    for each in psutil.Process(first.pid).children()
                    if each.status() == psutil.STATUS_ZOMBIE
                ]

            def adopted() -> bool:
                return any(each.name() == "sleep" for each in psutil.Process(first.pid).children())

            asyncio.run(soon(lambda: not adopted()))
            assert zombies() == []
            first.send_signal(signal.SIGTERM)
            assert process.wait()[0] == 0
