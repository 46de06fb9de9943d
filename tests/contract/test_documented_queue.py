"""The message queue that docs/how-to/custom-queue.md shows keeps the contract, as the code stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import Client, ControlPlaneConfig
from llama_deploy.deploy import HostedWorkflow, LocalStack
from llama_deploy.errors import ConfigError, UnavailableError
from llama_deploy.message_queues import config_from_settings, config_from_url
from llama_deploy.testing.processes import free_port

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "custom-queue.md"
MODULE = "llama_deploy_postgresql"
SUITE = f"test_{MODULE}.py"
SKIPPED = {"the broker has no groups", "the broker's topics have no bound"}
SECONDS = 60.0

_BLOCK = re.compile(
    r"^<!-- part of: (?P<file>\S+) -->\n```(?:python|toml)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def read_parts() -> dict[str, list[str]]:
    """Return the blocks of each file that the page shows, in order."""
    parts: dict[str, list[str]] = {}
    for block in _BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        parts.setdefault(block["file"], []).append(block["code"])
    return parts


def joined(blocks: list[str]) -> str:
    """Return one file of several blocks, with the blank lines that a formatter puts between them."""
    first, *others = blocks
    return first + "".join(("\n\n" if block.startswith("class ") else "\n") + block for block in others)


class Shout(Workflow):
    @step
    async def shout(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("text").upper())


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder that holds the package, as an installer would have left it."""
    parts = read_parts()
    for name, blocks in parts.items():
        (tmp_path / name).write_text(joined(blocks), encoding="utf-8")
    project = tomllib.loads("".join(parts["pyproject.toml"]))["project"]
    metadata = tmp_path / f"{MODULE}-{project['version']}.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    metadata.joinpath("entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    return tmp_path


@pytest.fixture
def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(package)
    yield
    sys.modules.pop(MODULE, None)


def in_project(command: list[str], package: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(package), str(ROOT / "src")])
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=package,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_it_has_less_than_a_hundred_lines() -> None:
    lines = [line for block in read_parts()[f"{MODULE}.py"] for line in block.splitlines()]

    assert 50 < len(lines) < 100


def test_all_code_of_the_page_is_tested() -> None:
    text = PAGE.read_text(encoding="utf-8")

    fences = re.findall(r"^(<!-- .* -->)\n```\w", text, re.MULTILINE)
    assert len(fences) == len(re.findall(r"^```\w", text, re.MULTILINE))
    shown = [fence for fence in fences if not fence.startswith("<!-- not run: ")]
    assert len(shown) == sum(len(blocks) for blocks in read_parts().values())


@pytest.mark.parametrize(
    "command",
    [["ruff", "format", "--check"], ["ruff", "check"]],
    ids=["ruff format", "ruff check"],
)
def test_it_is_clean(package: Path, command: list[str]) -> None:
    config = ["--no-cache", "--config", str(ROOT / "pyproject.toml")]
    done = in_project([*command, *config, f"{MODULE}.py"], package)

    assert done.returncode == 0, done.stdout + done.stderr


def test_its_types_are_right(package: Path) -> None:
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", os.devnull]
    done = in_project(["mypy", *config, f"{MODULE}.py"], package, MYPYPATH=str(ROOT / "src"))

    assert done.returncode == 0, done.stdout + done.stderr


def test_it_passes_the_suite_that_the_page_shows(package: Path, postgresql_uri: str) -> None:
    options = ["-W", "error", "-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function"]
    done = in_project(["pytest", "-rs", *options, SUITE], package, DATABASE_URL=postgresql_uri)

    assert done.returncode == 0, done.stdout + done.stderr
    assert set(re.findall(r"^SKIPPED .*?: (.*)$", done.stdout, re.MULTILINE)) == SKIPPED, done.stdout


@pytest.mark.usefixtures("installed")
class TestInstalled:
    def test_its_scheme_and_its_type_lead_to_it(self) -> None:
        config = config_from_url("postgresql://ann:secret@host/database")

        assert (type(config).__module__, config.address) == (MODULE, "postgresql")
        assert "secret" not in f"{config!r} {config.public_settings()}"
        assert type(config_from_settings(config.public_settings())) is type(config)

    async def test_a_database_that_does_not_answer_is_said_so(self) -> None:
        config = config_from_url(f"postgresql://ann:secret@127.0.0.1:{free_port()}/database")

        with pytest.raises(UnavailableError) as refused:
            await config.connect()
        assert "secret" not in str(refused.value)

    async def test_a_stack_runs_tasks_over_it(self, postgresql_uri: str, tmp_path: Path) -> None:
        config = ControlPlaneConfig(port=0, state_store_uri=f"sqlite:///{tmp_path}/state.db")
        stack = await LocalStack.start(
            [HostedWorkflow.named("shout", Shout())],
            control_plane_config=config,
            message_queue_config=config_from_url(postgresql_uri),
        )
        async with stack, Client(control_plane_url=stack.control_plane_url, timeout=SECONDS) as client:
            handle = await client.submit("shout", text="hello")
            assert await handle.result() == "HELLO"


def test_it_is_not_known_where_it_is_not_installed() -> None:
    with pytest.raises(ConfigError, match="no message queue of type 'postgresql'"):
        config_from_url("postgresql://host/database")
