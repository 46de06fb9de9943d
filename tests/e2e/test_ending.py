"""A process ends `drain_timeout` and 2 s after it was asked to, whatever its steps do."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.e2e.conftest import PROGRAMS
from tests.e2e.llamactl import ANY_PORTS, PATIENCE, Process, started
from tests.pulse import Pulse

from llama_deploy import Client
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import Program

DRAIN = 1.0
GRACE = 2.0
BUSY = 5.0
"""What a busy machine may add. A process that waited for its step would never end."""
STARTED = {
    "Sleeps": "the step 'work' of task {task} of service Sleeps",
    "Spins": "the step 'work' of task {task} of service Spins",
    "Blocks": "the step 'work' of task {task} of service Blocks",
    "Resists": "the step 'work' of task {task} of service Resists",
    "Leaves": "the thread 'left-behind'",
}
ENDS_BY_ITSELF = "Sleeps"
"""Its thread is left alone."""
EMBEDDED = """
import asyncio, logging, sys
logging.basicConfig(level=logging.INFO)
from endless import *
from llama_deploy import ControlPlaneConfig, WorkflowServiceConfig, deploy_workflow
name, port = sys.argv[1], int(sys.argv[2])
config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name=name)
asyncio.run(deploy_workflow(globals()[name](timeout=None), config, ControlPlaneConfig(port=port)))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(PROGRAMS / "endless.py", tmp_path)
    (tmp_path / "makers.py").write_text(
        "from endless import *\n"
        + "".join(f"def make_{name}(): return {name}(timeout=None)\n" for name in STARTED)
    )
    (tmp_path / "embedded.py").write_text(EMBEDDED)
    monkeypatch.setenv("LLAMA_DEPLOY_WF_SERVICE_DRAIN_TIMEOUT", str(DRAIN))
    return tmp_path


def begin(url: str, name: str, printed: Callable[[], str]) -> str:
    """Start a task; return its id when its step runs."""
    with Client(url, timeout=PATIENCE).sync as client:
        task_id = client.submit(name).task_id
    asyncio.run(eventually(lambda: "begun" in printed(), seconds=PATIENCE))
    return task_id


@contextmanager
def serving(project: Path, name: str, *before: str, command: str = "serve") -> Iterator[tuple[Process, str]]:
    ports = ANY_PORTS if command == "serve" else ()
    with started(project, *before, command, f"{name}=makers:make_{name}", *ports, "--json") as process:
        yield process, json.loads(process.line())["control_plane_url"]


def seconds_until_end(process: Process) -> float:
    with Pulse() as pulse:
        since = time.monotonic()
        process.process.wait(PATIENCE)
        return pulse.idle_seconds(since)


def check(name: str, code: int, errors: str, seconds: float, task: str, *, ended_by: signal.Signals) -> None:
    assert seconds < DRAIN + GRACE + BUSY, errors
    assert "Traceback" not in errors
    if name == ENDS_BY_ITSELF:
        assert code == 0, errors
    else:
        assert code == 128 + ended_by, errors
        assert STARTED[name].format(task=task) in errors
        assert errors.count("s after it was asked to. Still running: ") == 1


@pytest.mark.parametrize("name", STARTED)
def test_sigterm_ends_a_server(project: Path, name: str) -> None:
    with serving(project, name) as (process, url):
        task = begin(url, name, process.errors.read_text)
        process.process.send_signal(signal.SIGTERM)
        seconds = seconds_until_end(process)
        code, errors = process.wait()
    check(name, code, errors, seconds, task, ended_by=signal.SIGTERM)


@pytest.mark.parametrize("name", ["Sleeps", "Spins"])
def test_sigterm_ends_a_worker(project: Path, name: str) -> None:
    with started(project, "serve", *ANY_PORTS, "--json") as core:
        url = json.loads(core.line())["control_plane_url"]
        with serving(project, name, "-s", url, command="worker") as (process, _):
            task = begin(url, name, process.errors.read_text)
            process.process.send_signal(signal.SIGTERM)
            seconds = seconds_until_end(process)
            code, errors = process.wait()
    check(name, code, errors, seconds, task, ended_by=signal.SIGTERM)


@pytest.mark.parametrize("name", STARTED)
def test_ctrl_c_twice_and_more_ends_a_server_without_a_traceback(project: Path, name: str) -> None:
    with serving(project, name) as (process, url):
        task = begin(url, name, process.errors.read_text)
        process.process.send_signal(signal.SIGINT)
        time.sleep(0.4)  # faster presses count as one
        process.process.send_signal(signal.SIGINT)
        seconds = seconds_until_end(process)
        code, errors = process.wait()
    check(name, code, errors, seconds, task, ended_by=signal.SIGINT)


@pytest.mark.parametrize("name", ["Spins", "Resists"])
def test_a_third_ctrl_c_ends_a_server_at_once(
    project: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_DEPLOY_WF_SERVICE_DRAIN_TIMEOUT", "60")
    with serving(project, name) as (process, url):
        begin(url, name, process.errors.read_text)
        time.sleep(0.5)  # until it spins
        for _ in range(3):
            process.process.send_signal(signal.SIGINT)
            time.sleep(0.4)
        assert seconds_until_end(process) < 30  # of the 60 that it may drain
        code, errors = process.wait()
    assert (code, "Traceback" in errors) == (130, False)


@contextmanager
def embedded(project: Path, name: str, port: int) -> Iterator[Program]:
    argv = [str(project / "embedded.py"), name, str(port)]
    with Program(argv, output=project / "embedded.txt") as program:
        yield program


def test_open_streams_and_long_polls_do_not_hold_up_a_server(project: Path) -> None:
    with (
        serving(project, "Sleeps") as (process, url),
        serving(project, "Leaves", "-s", url, command="worker"),
        started(project, "-s", url, "run", "Sleeps"),
    ):
        begin(url, "Sleeps", process.errors.read_text)
        process.process.send_signal(signal.SIGTERM)
        seconds = seconds_until_end(process)
        code, errors = process.wait()
    assert (code, "Stopped." in errors) == (0, True)
    assert seconds < DRAIN + GRACE + BUSY


@pytest.mark.parametrize(
    ("name", "signum", "code"),
    [
        ("Sleeps", signal.SIGTERM, -signal.SIGTERM),
        ("Sleeps", signal.SIGINT, 0),
        ("Spins", signal.SIGTERM, 128 + signal.SIGTERM),
        ("Spins", signal.SIGINT, 128 + signal.SIGINT),
        ("Resists", signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_a_program_of_your_own_ends_too(
    project: Path, pulse: Pulse, name: str, signum: signal.Signals, code: int
) -> None:
    argv = [str(project / "embedded.py"), name]
    with started(project, "serve", *ANY_PORTS, "--json") as core:
        url = json.loads(core.line())["control_plane_url"]
        with Program([*argv, url.rpartition(":")[2]], output=project / "embedded.txt") as program:
            program.wait_for_output("registered as instance")
            task = begin(url, name, lambda: program.text)
            since = time.monotonic()
            assert program.stop(signum) == code
            assert pulse.idle_seconds(since) < DRAIN + GRACE + BUSY
    assert "Traceback" not in program.text
    if code > 0:
        assert STARTED[name].format(task=task) in program.text
