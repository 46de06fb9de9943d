"""Programs of 0.6 end quietly on Ctrl-C: without a traceback, whatever their main coroutine is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from llama_deploy.testing.processes import free_port

BODY = """
import asyncio, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for programs in the background
from llama_deploy import *
from llama_deploy import ControlPlaneConfig, SimpleMessageQueueConfig, WorkflowServiceConfig
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

PORT, QUEUE, SERVICE = map(int, sys.argv[1:])
PLANE = ControlPlaneConfig(port=PORT)


class Echo(Workflow):
    @step
    async def echo(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="x")


def core():
    return deploy_core(PLANE, SimpleMessageQueueConfig(port=QUEUE))


def service():
    config = WorkflowServiceConfig(host="127.0.0.1", port=SERVICE, service_name="echo")
    return deploy_workflow(Echo(), config, PLANE)
"""
MAINS = {
    "outermost": "asyncio.run(core())",
    "awaited": "async def main():\n    await core()\n    print('after')\n\nasyncio.run(main())",
    "left behind": (
        "async def main():\n"
        "    tasks = [asyncio.create_task(core()), asyncio.create_task(service())]\n"
        "    await asyncio.to_thread(sys.stdin.readline)\n\n"
        "asyncio.run(main())"
    ),
}


@pytest.mark.parametrize("main", MAINS)
def test_no_traceback(main: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"{BODY}\n\n{MAINS[main]}\n")
    port = free_port()
    ports = [str(each) for each in (port, free_port(), free_port())]
    with subprocess.Popen(
        [sys.executable, str(program), *ports],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/{'services/echo' if main == 'left behind' else ''}")
            if main == "left behind":
                output, errors = process.communicate("\n", timeout=90)
            else:
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=90)
        finally:
            process.kill()
    assert "Traceback" not in errors
    assert "Error" not in errors
    assert process.returncode == 0
    assert output == ("after\n" if main == "awaited" else "")


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30):  # noqa: S310 - our own server
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
