"""A directory with workflows, and `llamactl serve` in it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.llamactl import ANY_PORTS, started

PROGRAMS = Path(__file__).parent / "programs"
SERVED = ("repeat=cli_app:Repeat", "sleep=cli_app:sleep_without_limit", "count=cli_app.py:Count")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with workflows in it."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(PROGRAMS / "cli_app.py", folder)
    (folder / "broken.py").write_text("import there_is_no_such_module\n")
    (folder / "nested").mkdir()
    shutil.copy(PROGRAMS / "cli_app.py", folder / "nested" / "workflows.py")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[dict[str, Any]]:
    """`llamactl serve --json`: what it announced."""
    with started(folder, "serve", *SERVED, *ANY_PORTS, "--json") as process:
        facts: dict[str, Any] = json.loads(process.line())
        yield facts
        assert process.end(signal.SIGINT)[0] == 0


@pytest.fixture(scope="module")
def server(served: dict[str, Any]) -> str:
    return str(served["control_plane_url"])
