"""What a served application logs, read from the stderr of real processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tests.e2e.llamactl import ANY_PORTS, llamactl, started

APPLICATION = """
import asyncio
import logging

from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

logger = logging.getLogger("desk")


class Desk(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> StopEvent:
        logger.info("asked in the step")
        await asyncio.to_thread(logger.info, "asked in a thread")
        if ev.fails:
            raise LookupError("no such desk")
        return StopEvent(result="fine")
"""
CONFIGURED = "import logging\nlogging.basicConfig(level=logging.INFO, format='MINE %(name)s %(message)s')\n"


@pytest.fixture
def logged(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """What `llamactl` logs while a task succeeds and another one fails."""
    before, code = request.param
    (tmp_path / "desk.py").write_text(code)
    data = tmp_path / "data"
    with started(
        tmp_path, *before, "serve", "desk.py:Desk", *ANY_PORTS, "--json", "--data-dir", str(data)
    ) as process:
        url = json.loads(process.line())["control_plane_url"]
        for fails in ("false", "true"):
            llamactl(tmp_path, "run", "Desk", f"fails={fails}", server=url)
        return process.end(signal.SIGINT)[1].splitlines()


@pytest.mark.parametrize("logged", [((), APPLICATION)], indirect=True)
def test_a_line_of_a_step_names_its_task(logged: list[str]) -> None:
    lines = [line for line in logged if " desk: asked in " in line]
    assert len(lines) == 4
    tasks = [line.partition(" [task ")[2] for line in lines]
    assert all(tasks)
    assert len(set(tasks)) == 2


@pytest.mark.parametrize("logged", [((), APPLICATION)], indirect=True)
def test_the_traceback_of_a_failed_task_is_logged_once(logged: list[str]) -> None:
    assert sum(line == "LookupError: no such desk" for line in logged) == 1
    assert sum('raise LookupError("no such desk")' in line for line in logged) == 1


@pytest.mark.parametrize("logged", [((), CONFIGURED + APPLICATION)], indirect=True)
def test_an_application_may_configure_logging(logged: list[str]) -> None:
    assert logged.count("MINE desk asked in the step") == 2
    assert any(line.startswith("MINE llama_deploy.services.") and "failed" in line for line in logged)


@pytest.mark.parametrize("logged", [(("--log-format", "json"), CONFIGURED + APPLICATION)], indirect=True)
def test_every_line_of_json_has_the_ids(logged: list[str]) -> None:
    records = [json.loads(line) for line in logged if line.startswith("{")]
    steps = [record for record in records if record["logger"] == "desk"]
    assert [record["message"] for record in steps] == ["asked in the step", "asked in a thread"] * 2
    (failure,) = [record for record in records if record.get("action") == "task_failed"]
    assert "LookupError: no such desk" in failure["exception"]
    for record in (*steps, failure):
        assert record["task_id"]
        assert record["session_id"]
        assert (record["service_name"], record["attempt"]) == ("Desk", 1)
    assert {line for line in logged if not line.startswith("{")} <= {
        "",
        "Waiting for running tasks, then stopping. Press Ctrl-C again to hand them back now.",
        "Stopped.",
    }
