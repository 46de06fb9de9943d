"""Which file and module `llamactl` serves, and what it says about workflows and names that do not work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.llamactl import ANY_PORTS, PATIENCE, environment, llamactl, started

FLOW = """
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent

class Lost(Event): ...

class Flow(Workflow):
    @step
    async def end(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=__name__)

class Invalid(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent | Lost:
        return StopEvent()

flow = Flow()
invalid = Invalid()
unchecked = Invalid(disable_validation=True)

def make():
    return Invalid()

def service():
    from llama_deploy import LocalStack, WorkflowService
    from llama_deploy.deploy import HostedWorkflow
    HostedWorkflow.named("service", invalid)
"""
RELATIVE = "from .shared import NAME\n" + FLOW


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def package(folder: Path, name: str, **files: str) -> Path:
    write(folder / name, **files)
    (folder / name / "__init__.py").touch()
    return folder


def refused(folder: Path, target: str) -> tuple[str, str]:
    """Return the error and the hint of `llamactl serve`."""
    done = llamactl(folder, "serve", target, *ANY_PORTS)
    assert done.returncode in (1, 2), done
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    error = next(line for line in lines if line.startswith("error: "))
    return error, next((line for line in lines if line.startswith("hint: ")), "")


def served(folder: Path, target: str) -> str:
    """Return the result of a served workflow: the name of its module."""
    with started(folder, "serve", f"it={target}", *ANY_PORTS, "--json") as process:
        url = json.loads(process.line())["control_plane_url"]
        done = llamactl(folder, "run", "it", server=url)
        process.end(signal.SIGTERM)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


class TestInvalidWorkflows:
    @pytest.mark.parametrize("attribute", ["Invalid", "invalid", "make"])
    @pytest.mark.parametrize("source", ["app.py", "app"])
    def test_one_is_refused_with_the_words_of_the_library(
        self, tmp_path: Path, source: str, attribute: str
    ) -> None:
        error, _ = refused(write(tmp_path, app=FLOW), f"{source}:{attribute}")
        line = FLOW[: FLOW.index("class Invalid")].count("\n") + 1
        assert f"{source}:{attribute} ({tmp_path}/app.py, line {line}) is not a valid workflow" in error
        assert "events are produced but never consumed: Lost" in error

    def test_a_worker_refuses_it_too(self, tmp_path: Path) -> None:
        done = llamactl(write(tmp_path, app=FLOW), "worker", "app.py:Invalid", server="http://127.0.0.1:9")
        assert "never consumed: Lost" in done.stderr

    def test_one_without_validation_is_served(self, tmp_path: Path) -> None:
        assert served(write(tmp_path, app=FLOW), "app.py:unchecked")

    def test_a_program_is_told(self, tmp_path: Path) -> None:
        done = python(write(tmp_path, app=FLOW), "-c", "import app; app.service()")
        assert "ConfigError: app.Invalid" in done.stderr
        assert "never consumed: Lost" in done.stderr


class TestPackages:
    def test_a_file_of_a_package_is_a_module_of_it(self, tmp_path: Path) -> None:
        package(package(tmp_path, "pkg", shared="NAME = 1"), "pkg/inner", shared="NAME = 1", flow=RELATIVE)
        assert served(tmp_path, "pkg/inner/flow.py:flow") == "pkg.inner.flow"
        assert served(tmp_path / "pkg", "inner/flow.py:flow") == "pkg.inner.flow"

    def test_a_file_of_a_folder_that_is_no_package_names_the_command(self, tmp_path: Path) -> None:
        write(tmp_path / "pkg", shared="NAME = 1", flow=RELATIVE)
        error, hint = refused(tmp_path, "x=pkg/flow.py:flow")
        assert "relative import" in error
        command = hint.partition("module of its folder: ")[2]
        assert command.startswith("llamactl serve x=pkg.flow:flow")
        assert served(tmp_path, "pkg.flow:flow") == "pkg.flow"
        _, hint = refused(tmp_path / "pkg", "flow.py:flow")
        assert f"cd {tmp_path} && llamactl serve pkg.flow:flow" in hint


class TestNamesakes:
    """Files of the user with the name of a library."""

    def test_a_file_with_the_name_of_the_library_can_be_served_as_a_file(self, tmp_path: Path) -> None:
        write(tmp_path, workflows=FLOW)
        assert served(tmp_path, "./workflows.py:flow") == "llamactl_workflows"
        error, hint = refused(tmp_path, "workflows:flow")
        assert f"the file {tmp_path}/workflows.py has the same name as the module `workflows`" in error
        assert "llamactl serve ./workflows.py:flow" in hint

    def test_a_folder_with_the_name_of_the_library(self, tmp_path: Path) -> None:
        package(tmp_path, "workflows", shared="NAME = 1", flow="from workflows.shared import NAME\n" + FLOW)
        for target in ("workflows.flow:flow", "workflows/flow.py:flow"):
            error, _ = refused(tmp_path, target)
            assert f"the folder {tmp_path}/workflows has the same name as the module `workflows`" in error
            assert "rename the folder" in error
        (tmp_path / "workflows" / "flow.py").write_text(FLOW)
        assert served(tmp_path, "workflows/flow.py:flow") == "flow"

    @pytest.mark.parametrize("name", ["workflows", "workflows/__init__"])
    @pytest.mark.parametrize(
        "program",
        [
            "from llama_deploy import WorkflowService",
            "from llama_deploy.services import WorkflowService",
            "from llama_deploy import deploy_workflow",
            "import llama_deploy.codec",
            "import llama_deploy.deploy",
        ],
    )
    def test_a_program_beside_one_is_told(self, tmp_path: Path, name: str, program: str) -> None:
        write(tmp_path, **{name: "mine = 1", "app": program})
        done = python(tmp_path, "app.py")
        found = tmp_path / ("workflows.py" if name == "workflows" else "workflows")
        assert f"{found} has the same name as the module `workflows` (llama-index-workflows" in done.stderr
        assert "rename the" in done.stderr.splitlines()[-1]

    def test_a_client_does_not_need_the_library(self, tmp_path: Path) -> None:
        write(
            tmp_path, workflows="mine = 1", app="from llama_deploy import Client\nimport workflows\nClient()"
        )
        done = python(tmp_path, "app.py")
        assert done.returncode == 0, done.stderr

    def test_a_file_with_the_name_of_a_standard_module(self, tmp_path: Path) -> None:
        write(tmp_path / "program", queue="mine = 1", app="from llama_deploy import Client")
        done = python(tmp_path / "program", "app.py")
        assert "program/queue.py has the same name as the module `queue`" in done.stderr
        write(tmp_path, types=FLOW)
        command = str(Path(sys.executable).with_name("llamactl"))
        done = python(tmp_path, "-P", command, "serve", "types:flow", *ANY_PORTS)
        assert f"the file {tmp_path}/types.py has the same name as the module `types`" in done.stderr
        assert "llamactl serve ./types.py:flow" in done.stderr
