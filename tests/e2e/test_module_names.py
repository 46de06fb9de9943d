"""One file is one program, however it is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

APP = """
import json
import multiprocessing
from enum import Enum
from pydantic import BaseModel
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, StartEvent, StopEvent

class Colour(Enum):
    RED = 1

class State(BaseModel):
    count: int = 0

class Passed(Event):
    class Inner(BaseModel):
        x: int = 1
    inner: Inner = Inner()
    colour: Colour = Colour.RED

class Answer(HumanResponseEvent):
    text: str

class Program(Workflow):
    @step
    async def begin(self, ev: StartEvent, ctx: Context[State]) -> Passed:
        return Passed()

    @step
    async def end(self, ev: Passed, ctx: Context[State]) -> StopEvent:
        return StopEvent(result=(await ctx.wait_for_event(Answer)).text)

def identity():
    from llama_deploy.services.run.hosted_workflow import HostedWorkflow
    hosted = HostedWorkflow.prepare(Program)
    names = [name for name in hosted.events.names if not name.startswith("workflows.")]
    written = hosted.journals.writing.write([Passed(), State()], path="$")
    print(json.dumps([hosted.journals.header.fingerprint, hosted.states.key, names, written]))

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    if "spawn" in __import__("sys").argv:
        process = multiprocessing.Process(target=identity)
        process.start()
        process.join()
    else:
        identity()
"""
BY_COMMAND = "from llama_deploy.cli.serving.targets import load_workflows as load; import sys; "

BY_COMMAND += "sys.modules[load([sys.argv[1]])['Program'].make.__module__].identity()"


def identity(folder: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[1:])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file, also in a package, a folder and under another name."""
    folder = tmp_path_factory.mktemp("programs")
    for name in ("app", "pkg/app", "pkg/inner/app", "plain/app", "named/queue"):
        file = folder / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(APP)
    (folder / "pkg" / "__init__.py").touch()
    (folder / "pkg" / "inner" / "__init__.py").touch()
    (folder / "link.py").symlink_to("app.py")
    return folder


@pytest.mark.parametrize(
    ("place", "module", "started"),
    [
        (
            ".",
            "app",
            [
                ("app.py",),
                ("./app.py",),
                ("{folder}/app.py",),
                ("-m", "app"),
                ("app.py", "spawn"),
                ("link.py",),
                ("-c", BY_COMMAND, "app.py:Program"),
                ("-c", BY_COMMAND, "{folder}/app.py:Program"),
                ("-c", BY_COMMAND, "link.py:Program"),
                ("-c", BY_COMMAND, "app:Program"),
            ],
        ),
        (
            ".",
            "pkg.inner.app",
            [
                ("pkg/inner/app.py",),
                ("-m", "pkg.inner.app"),
                ("-m", "pkg.inner.app", "spawn"),
                ("-c", BY_COMMAND, "pkg/inner/app.py:Program"),
                ("-c", BY_COMMAND, "pkg.inner.app:Program"),
            ],
        ),
        ("pkg/inner", "pkg.inner.app", [("app.py",), ("-c", BY_COMMAND, "app.py:Program")]),
        ("plain", "app", [("app.py",), ("-m", "app"), ("-c", BY_COMMAND, "../app.py:Program")]),
        ("plain", "queue", [("-c", BY_COMMAND, "../named/queue.py:Program")]),
    ],
)
def test_a_file_is_the_same_program_however_it_is_started(
    folder: Path, place: str, module: str, started: list[tuple[str, ...]]
) -> None:
    fingerprints = set()
    for arguments in started:
        filled = [argument.replace("{folder}", str(folder)) for argument in arguments]
        fingerprint, key, names, written = identity(folder / place, *filled)
        fingerprints.add(fingerprint)
        assert key == f"__workflow_state__:{module}.State", arguments
        assert names == [f"{module}.Answer", f"{module}.Passed"], arguments
        assert f'"{module}.Passed.Inner"' in written
        assert f'"{module}.Colour"' in written
        assert "__main__" not in written
    assert len(fingerprints) == 1
