"""llamactl as people use it: real processes, their output, their exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from workflows.events import HumanResponseEvent

from llama_deploy.cli.arguments import parse_arguments
from llama_deploy.cli.schemas import example, summarize
from llama_deploy.client import SyncClient
from llama_deploy.state_stores.migrations import SCHEMA_REVISION
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import free_port

LLAMACTL = (sys.executable, "-m", "llama_deploy.cli")
PATIENCE = 30.0

WORKFLOWS = '''
import asyncio

from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


class Progress(Event):
    text: str


class Ask(StartEvent):
    message: str
    times: int = 1


class Answer(StopEvent):
    answer: str


class Repeat(Workflow):
    """Repeats what it is told.

    And more.
    """

    @step
    async def repeat(self, ctx: Context, ev: Ask) -> StopEvent:
        for number in range(ev.times):
            ctx.write_event_to_stream(Progress(text=f"{ev.message} {number}"))
        if ev.message == "boom":
            raise ValueError("a bad message")
        return StopEvent(result=ev.message * ev.times)


class Sleep(Workflow):
    @step
    async def sleep(self, ctx: Context, ev: StartEvent) -> Answer:
        ctx.write_event_to_stream(Progress(text="begun"))
        await asyncio.sleep(ev.get("seconds", 300))
        return Answer(answer="slept")


class Count(Workflow):
    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        count = await ctx.store.get("count", default=0) + 1
        await ctx.store.set("count", count)
        return StopEvent(result={"count": count, "given": ev.get("given", None)})


class Asking(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix="Sure?")

    @step
    async def end(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


def sleep_without_limit() -> Sleep:
    return Sleep(timeout=None)


def needs_something(something: str) -> Sleep:
    return Sleep()


repeat = Repeat()
number = 3
'''


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with workflows in it."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "cli_app.py").write_text(WORKFLOWS)
    (folder / "broken.py").write_text("import there_is_no_such_module\n")
    (folder / "nested").mkdir()
    (folder / "nested" / "workflows.py").write_text(WORKFLOWS)
    return folder


class Process:
    """A command that runs; its stderr goes to a file, its stdout is read by a thread."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.errors = folder / f"stderr-{time.monotonic_ns()}.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*LLAMACTL, *arguments],
                cwd=folder,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put("")

    def line(self) -> str:
        """Return the next line of stdout."""
        try:
            line = self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            pytest.fail(f"no output; stderr: {self.errors.read_text()}")
        assert line, f"it has ended; stderr: {self.errors.read_text()}"
        return line.rstrip("\n")

    def error_line(self) -> str:
        """Return the first line of stderr, once it is there."""
        asyncio.run(eventually(lambda: "\n" in self.errors.read_text(), seconds=PATIENCE))
        return self.errors.read_text().splitlines()[0]

    def end(self, signum: signal.Signals) -> tuple[int, str]:
        """Send a signal; return exit code and stderr."""
        self.process.send_signal(signum)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        code = self.process.wait(PATIENCE)
        return code, self.errors.read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[Process]:
    process = Process(folder, *arguments)
    try:
        yield process
    finally:
        process.close()


ANY_PORTS = ("--port", "0", "--queue-port", "0")
SERVED = ("repeat=cli_app:Repeat", "sleep=cli_app:sleep_without_limit", "count=cli_app.py:Count")


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


def llamactl(folder: Path, *arguments: str, server: str | None = None) -> subprocess.CompletedProcess[str]:
    named = ("-s", server) if server else ()
    return subprocess.run(
        [*LLAMACTL, *named, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


class TestOptions:
    """The options that all commands have. They come before the command."""

    @pytest.mark.parametrize("option", ["-s", "-t", "--server", "--control-plane"])
    def test_they_are_rejected_after_the_command(self, folder: Path, option: str) -> None:
        done = llamactl(folder, "run", "repeat", option, "1")
        assert (done.returncode, "No such option" in done.stderr) == (2, True)

    @pytest.mark.parametrize(
        ("options", "command"),
        [
            (("-s", "http://127.0.0.1:1"), "serve"),
            (("-k",), "serve"),
            (("-t", "3"), "serve"),
            (("-t", "3"), "worker"),
        ],
    )
    def test_they_are_rejected_where_they_have_no_effect(
        self, folder: Path, options: tuple[str, ...], command: str
    ) -> None:
        done = llamactl(folder, *options, command, "cli_app:repeat")
        assert done.returncode == 2
        assert f"has no effect on `llamactl {command}`" in done.stderr

    @pytest.mark.parametrize("command", [("status",), ("worker", "cli_app:repeat")])
    def test_a_server_that_is_not_a_url(self, folder: Path, command: tuple[str, ...]) -> None:
        done = llamactl(folder, *command, server="nowhere:1")
        assert done.returncode == 2
        assert "'nowhere:1' is not a URL" in done.stderr

    def test_an_invalid_environment_variable(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS", "many")
        done = llamactl(folder, "serve", "cli_app:repeat", *ANY_PORTS)
        assert done.returncode == 2
        assert "LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS" in done.stderr
        assert "'many'" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_version(folder: Path) -> None:
    done = llamactl(folder, "--version")
    assert (done.returncode, done.stdout) == (0, f"llamactl {version('llama-deploy')}\n")


@pytest.mark.parametrize(
    "command",
    ["", "serve", "worker", "run", "status", "sessions", "sessions create", "db", "db current", "db upgrade"],
)
def test_each_command_has_help(folder: Path, command: str) -> None:
    done = llamactl(folder, *command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: llamactl {command}".strip() in done.stdout


class TestServe:
    def test_it_prints_what_it_serves(self, folder: Path, served: dict[str, Any]) -> None:
        repeat, sleep, count = served["services"]
        assert (repeat["service_name"], repeat["description"]) == ("repeat", "Repeats what it is told.")
        assert repeat["input_schema"]["required"] == ["message"]
        assert sleep["output_schema"]["properties"]["answer"]["type"] == "string"
        assert count["output_schema"] is None
        assert served["data_dir"] == ".llama_deploy"
        assert (folder / ".llama_deploy" / "control_plane.db").is_file()

    def test_the_printed_commands_work_when_pasted(self, folder: Path, tmp_path: Path) -> None:
        with started(folder, "serve", "cli_app:repeat", *ANY_PORTS, "--data-dir", str(tmp_path)) as process:
            lines: list[str] = []
            while not lines or not lines[-1].startswith("Press Ctrl-C"):
                lines.append(process.line())
            text = "\n".join(lines)
            assert "repeat  Repeats what it is told." in text
            assert "arguments  message: string, times: integer = 1" in text
            assert "result     any" in text
            run, curl, python = (
                shlex.split(line) for line in lines if line.startswith(("llamactl ", "curl ", "python "))
            )
            done = llamactl(folder, *run[1:])
            assert done.stdout.splitlines()[-1] == "hello", done.stderr
            program = subprocess.run(
                [sys.executable, *python[1:]], capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            assert program.stdout == "hello\n", program.stderr
            assert curl[:2] == ["curl", "-s"]
            request = urllib.request.Request(  # noqa: S310 - what was printed
                curl[2], data=curl[-1].encode(), headers={"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
                assert json.load(answer)["result"]["value"] == "hello"

    def test_ctrl_c_stops_it_and_a_second_serve_finds_its_data(self, folder: Path, tmp_path: Path) -> None:
        arguments = ("serve", "cli_app:repeat", *ANY_PORTS, "--json", "--data-dir", str(tmp_path / "data"))
        with started(folder, *arguments) as process:
            url = json.loads(process.line())["control_plane_url"]
            session = llamactl(folder, "sessions", "create", server=url).stdout.strip()
            code, errors = process.end(signal.SIGINT)
        assert code == 0
        assert "Stopped." in errors
        assert "Traceback" not in errors
        with started(folder, *arguments) as process:
            url = json.loads(process.line())["control_plane_url"]
            done = llamactl(folder, "run", "repeat", "message=again", "--session", session, server=url)
            assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_running_tasks_may_finish(self, folder: Path, tmp_path: Path, signum: signal.Signals) -> None:
        arguments = ("serve", "cli_app:Sleep", *ANY_PORTS, "--json", "--data-dir", str(tmp_path / "data"))
        with started(folder, *arguments) as process:
            url = json.loads(process.line())["control_plane_url"]
            with started(folder, "-s", url, "run", "Sleep", "seconds=2") as run:
                assert run.line() == 'Progress  {"text": "begun"}'
                process.process.send_signal(signum)
                rest = run.line()
                assert rest == "{"
                assert run.wait()[0] == 0
            code, errors = process.wait()
        assert (code, "Traceback" in errors) == (0, False)

    def test_a_second_ctrl_c_hands_tasks_back(self, folder: Path, tmp_path: Path) -> None:
        arguments = ("serve", "sleep=cli_app:sleep_without_limit", *ANY_PORTS, "--json")
        with started(folder, *arguments, "--data-dir", str(tmp_path / "data")) as process:
            url = json.loads(process.line())["control_plane_url"]
            with started(folder, "-s", url, "run", "sleep") as run:
                run.line()
                process.process.send_signal(signal.SIGINT)
                deadline = time.monotonic() + PATIENCE
                while process.process.poll() is None and time.monotonic() < deadline:
                    # Those that follow too quickly count as one.
                    process.process.send_signal(signal.SIGINT)
                    if "Handing back the running tasks" in process.errors.read_text():
                        break
                code, errors = process.wait()
        assert code == 0, errors
        assert "Traceback" not in errors

    def test_a_port_in_use(self, folder: Path, served: dict[str, Any], tmp_path: Path) -> None:
        port = served["control_plane_url"].rpartition(":")[2]
        done = llamactl(
            folder,
            "serve",
            "cli_app:repeat",
            "--port",
            port,
            "--queue-port",
            "0",
            "--data-dir",
            str(tmp_path),
        )
        assert done.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
        assert "choose another port" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_data_directory_that_cannot_be_created(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        done = llamactl(
            folder, "serve", "cli_app:repeat", *ANY_PORTS, "--data-dir", str(tmp_path / "file" / "data")
        )
        assert done.returncode == 2
        assert f"cannot store data in {tmp_path}/file/data" in done.stderr
        assert "--data-dir" in done.stderr

    @pytest.mark.usefixtures("served")
    def test_a_data_directory_in_use(self, folder: Path) -> None:
        done = llamactl(folder, "serve", "cli_app:repeat", *ANY_PORTS)
        assert done.returncode == 1
        assert "another control plane" in done.stderr
        assert "--data-dir" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("target", "text", "code"),
        [
            ("cli_app", "'cli_app' does not name a workflow", 2),
            ("nowhere:repeat", "no module 'nowhere'", 2),
            ("nowhere.py:repeat", "no file nowhere.py", 2),
            ("cli_app:nothing", "Count, Repeat, Sleep, repeat", 2),
            ("cli_app:number", "is not a workflow but int", 2),
            ("cli_app:needs_something", "calling cli_app:needs_something without arguments failed", 1),
            ("broken:repeat", "No module named 'there_is_no_such_module'", 1),
            ("not good=cli_app:repeat", "'not good' is not a valid service name", 2),
            ("control_plane=cli_app:repeat", "reserved", 2),
        ],
    )
    def test_an_invalid_target(self, folder: Path, tmp_path: Path, target: str, text: str, code: int) -> None:
        done = llamactl(folder, "serve", target, *ANY_PORTS, "--data-dir", str(tmp_path))
        assert text in done.stderr
        assert done.returncode == code
        assert "Traceback" not in done.stderr

    def test_two_services_with_the_same_name(self, folder: Path) -> None:
        done = llamactl(folder, "serve", "cli_app:repeat", "repeat=cli_app:Sleep")
        assert (done.returncode, "two services have the name 'repeat'" in done.stderr) == (2, True)

    def test_verbose_shows_the_traceback(self, folder: Path) -> None:
        assert "Traceback" in llamactl(folder, "--verbose", "serve", "broken:repeat").stderr

    def test_other_machines_need_allow_remote(self, folder: Path) -> None:
        done = llamactl(folder, "serve", "cli_app:repeat", "--host", "0.0.0.0")  # noqa: S104 - refused
        assert (done.returncode, "--allow-remote" in done.stderr) == (2, True)

    def test_a_file_may_have_the_name_of_a_library(self, folder: Path, tmp_path: Path) -> None:
        with started(
            folder, "serve", "nested/workflows.py:repeat", *ANY_PORTS, "--json", "--data-dir", str(tmp_path)
        ) as process:
            url = json.loads(process.line())["control_plane_url"]
            done = llamactl(folder, "run", "repeat", "message=hi", server=url)
        assert done.stdout.splitlines()[-1] == "hi", done.stderr


class TestWorker:
    def test_it_joins_a_control_plane(self, folder: Path, server: str) -> None:
        with started(folder, "-s", server, "worker", "late=cli_app:Count", "--json") as worker:
            facts = json.loads(worker.line())
            assert facts["services"][0]["service_name"] == "late"
            assert facts["pid"] == worker.process.pid
            done = llamactl(folder, "run", "late", "given=joined", "--json", server=server)
            assert json.loads(done.stdout)["result"] == {"count": 1, "given": "joined"}
            assert worker.end(signal.SIGTERM)[0] == 0
        done = llamactl(folder, "-t", "0.5", "run", "late", server=server)
        assert "no instance of late is alive" in done.stderr

    def test_it_uses_the_next_replica(self, folder: Path, server: str) -> None:
        servers = f"http://127.0.0.1:{free_port()}, {server}/"
        with started(folder, "-s", servers, "worker", "again=cli_app:Count", "--json") as worker:
            assert json.loads(worker.line())["services"][0]["service_name"] == "again"
            done = llamactl(folder, "run", "again", "--json", server=servers)
            assert json.loads(done.stdout)["result"]["count"] == 1, done.stderr
            assert worker.end(signal.SIGTERM)[0] == 0

    def test_it_waits_for_the_control_plane(self, folder: Path, tmp_path: Path) -> None:
        port = free_port()
        with started(
            folder, "-s", f"http://127.0.0.1:{port}", "worker", "cli_app:repeat", "--json"
        ) as worker:
            deadline = time.monotonic() + PATIENCE
            while "; retrying" not in worker.errors.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            with started(
                folder,
                *("serve", "cli_app:Sleep", "--json", "--data-dir", str(tmp_path)),
                *("--port", str(port), "--queue-port", "0"),
            ) as process:
                process.line()
                assert json.loads(worker.line())["services"][0]["service_name"] == "repeat"
                assert worker.end(signal.SIGINT)[0] == 0


class TestRun:
    def test_events_then_the_result(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "repeat", "message=ho", "times=2", server=server)
        assert done.stdout.splitlines() == [
            'Progress  {"text": "ho 0"}',
            'Progress  {"text": "ho 1"}',
            "hoho",
        ]
        assert (done.returncode, done.stderr) == (0, "")

    def test_json_for_scripts(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "repeat", "message=ho", "times=2", "--json", server=server)
        *events, result = map(json.loads, done.stdout.splitlines())
        assert [(event["index"], event["type"], event["data"]) for event in events] == [
            (0, "Progress", {"text": "ho 0"}),
            (1, "Progress", {"text": "ho 1"}),
        ]
        assert (result["result"], result["status"]) == ("hoho", "succeeded")

    def test_values_are_json_or_strings(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "count", 'given=["a", 1]', "--json", server=server)
        assert json.loads(done.stdout)["result"]["given"] == ["a", 1]

    def test_a_number_where_a_string_is_expected(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "repeat", "message=12", "times=2", server=server)
        assert done.stdout.splitlines()[-1] == "1212"

    def test_a_session_keeps_its_state(self, folder: Path, server: str) -> None:
        session = llamactl(folder, "sessions", "create", server=server).stdout.strip()
        counts = [
            json.loads(llamactl(folder, "run", "count", "--session", session, "--json", server=server).stdout)
            for _ in range(2)
        ]
        assert [count["result"]["count"] for count in counts] == [1, 2]
        assert counts[0]["session_id"] == session

    def test_a_failed_task(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "repeat", "message=boom", server=server)
        assert done.returncode == 1
        assert done.stdout == 'Progress  {"text": "boom 0"}\n'
        assert "failed: builtins.ValueError: a bad message" in done.stderr
        assert 'raise ValueError("a bad message")' in done.stderr

    def test_a_failed_task_as_json(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "repeat", "message=boom", "--json", server=server)
        result = json.loads(done.stdout.splitlines()[-1])
        assert (done.returncode, result["status"], result["result"]) == (1, "failed", None)
        assert (result["error"]["type"], result["error"]["message"]) == (
            "builtins.ValueError",
            "a bad message",
        )

    def test_invalid_run_arguments(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "repeat", "times=two", server=server)
        assert done.returncode == 1
        assert "message: Field required" in done.stderr
        assert "repeat accepts: message: string, times: integer = 1" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [(["hello"], "'hello' is not a run argument"), (["a=1", "a=2"], "'a' occurs twice")],
    )
    def test_malformed_arguments(self, folder: Path, server: str, arguments: list[str], text: str) -> None:
        done = llamactl(folder, "run", "repeat", *arguments, server=server)
        assert (done.returncode, text in done.stderr) == (2, True)

    def test_an_unknown_service(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "nope", server=server)
        assert done.returncode == 3
        assert "service 'nope' is not registered" in done.stderr
        assert "repeat" in done.stderr

    def test_an_unknown_session(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "count", "--session", "nope", server=server)
        assert (done.returncode, "sessions create" in done.stderr) == (3, True)

    def test_an_unreachable_control_plane(self, folder: Path) -> None:
        url = f"http://127.0.0.1:{free_port()}"
        done = llamactl(folder, "run", "repeat", server=url)
        assert done.returncode == 3
        assert f"cannot reach the control plane at {url}: Connection refused" in done.stderr
        assert "start a control plane with `llamactl serve`" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_time_limit(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "--timeout", "0.5", "run", "sleep", "seconds=5", server=server)
        assert done.returncode == 124
        assert "is still running" in done.stderr

    def test_ctrl_c_cancels_the_task(self, folder: Path, server: str) -> None:
        with started(folder, "-s", server, "run", "sleep", "--json") as run:
            assert json.loads(run.line())["data"] == {"text": "begun"}
            code, errors = run.end(signal.SIGINT)
            result = json.loads(run.line())
        assert (code, result["status"]) == (130, "cancelled")
        assert "Cancelling the task" in errors

    def test_it_prints_how_to_send_an_event_to_a_waiting_task(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAMA_DEPLOY_WF_SERVICE_IDLE_TIMEOUT", "0")
        own = (*ANY_PORTS, "--data-dir", str(tmp_path), "--json")
        with started(folder, "serve", "asking=cli_app:Asking", *own) as serving:
            server = json.loads(serving.line())["control_plane_url"]
            with started(folder, "-s", server, "run", "asking") as run:
                assert run.line() == 'InputRequiredEvent  {"prefix": "Sure?"}'
                hint = run.error_line()
                told = re.fullmatch(r"task (\S+) is waiting for an event; send one with (.+)", hint)
                assert told, hint
                assert told[2] == f'client.task("{told[1]}").send(...)'
                with SyncClient(control_plane_url=server) as client:
                    client.task(told[1]).send(HumanResponseEvent(response="yes"))
                assert run.line() == "yes"
                assert run.wait() == (0, hint + "\n")

    def test_the_server_may_come_from_the_environment(
        self, folder: Path, server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", server)
        assert llamactl(folder, "run", "repeat", "message=hi").returncode == 0


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("3", 3),
        ("true", True),
        ("null", None),
        ('["a", 1]', ["a", 1]),
        ('{"a": {"b": 1.5}}', {"a": {"b": 1.5}}),
        ('"3"', "3"),
        ("a=b", "a=b"),
        ("NaN", "NaN"),
        ("", ""),
        ("two words", "two words"),
    ],
)
def test_values_are_json_or_strings(given: str, taken: object) -> None:
    assert parse_arguments([f"key={given}"]) == {"key": taken}


@pytest.mark.parametrize(("given", "taken"), [("3", "3"), ('"3"', "3"), ("true", "true"), ("a", "a")])
def test_values_are_strings_where_a_string_is_expected(given: str, taken: str) -> None:
    schema = {"properties": {"key": {"type": "string"}}}
    assert parse_arguments([f"key={given}"], schema) == {"key": taken}


def test_summaries_of_schemas() -> None:
    schema = {
        "$defs": {"Colour": {"enum": ["red", "blue"], "title": "Colour"}, "Place": {"title": "Place"}},
        "properties": {
            "tags": {"type": "array", "items": {"type": "string"}},
            "colour": {"$ref": "#/$defs/Colour"},
            "place": {"$ref": "#/$defs/Place"},
            "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            "note": {"type": "string"},
        },
        "required": ["tags", "colour"],
    }
    assert summarize(schema) == (
        "tags: list of string, colour: 'red' | 'blue', place: Place (optional), "
        "limit: integer | null = None, note: string (optional)"
    )
    assert example(schema) == {"tags": [], "colour": "red"}
    assert (summarize(None), example(None)) == ("any", {})


class TestStatus:
    def test_services_with_their_instances(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "status", server=server)
        assert done.returncode == 0, done.stderr
        assert server in done.stdout
        (line,) = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("repeat")]
        assert line == ["repeat", "1", "Repeats", "what", "it", "is", "told."]

    def test_json_for_scripts(self, folder: Path, server: str) -> None:
        facts = json.loads(llamactl(folder, "status", "--json", server=server).stdout)
        assert facts["control_plane_url"] == server
        assert facts["sessions"] >= 0
        service = {"service_name": "repeat", "description": "Repeats what it is told.", "instances_alive": 1}
        assert service in facts["services"]
        created = json.loads(llamactl(folder, "sessions", "create", "--json", server=server).stdout)
        again = json.loads(llamactl(folder, "status", "--json", server=server).stdout)
        assert (again["sessions"], list(created)) == (facts["sessions"] + 1, ["session_id"])

    def test_an_unreachable_control_plane(self, folder: Path) -> None:
        done = llamactl(folder, "status", server=f"http://127.0.0.1:{free_port()}")
        assert (done.returncode, "start a control plane with `llamactl serve`" in done.stderr) == (3, True)


class TestDatabase:
    @pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
    def test_a_store_is_upgraded(
        self, folder: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
    ) -> None:
        store = f"sqlite:///{tmp_path / 'store.db'}"
        if kind == "postgresql":
            store = request.getfixturevalue("postgresql_uri")

        def db(*arguments: str) -> str:
            done = llamactl(folder, "db", *arguments)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert "no schema" in db("current", "--store", store)
        current = json.loads(db("current", "--store", store, "--json"))
        assert current == {"revision": None, "expected": SCHEMA_REVISION}
        assert not (tmp_path / "store.db").exists()
        assert db("upgrade", "--store", store) == f"no schema -> {SCHEMA_REVISION}\n"
        upgraded = json.loads(db("upgrade", "--store", store, "--json"))
        assert upgraded == {"before": SCHEMA_REVISION, "revision": SCHEMA_REVISION}
        assert db("upgrade", "--store", store) == f"{SCHEMA_REVISION}, already up to date\n"
        assert db("current", "--store", store) == f"{SCHEMA_REVISION}, up to date\n"

    def test_a_store_that_does_not_respond(self, folder: Path) -> None:
        store = f"postgresql://me:hush@127.0.0.1:{free_port()}/db"
        done = llamactl(folder, "db", "current", "--store", store)
        assert done.returncode == 1
        assert "does not answer" in done.stderr
        assert "hush" not in done.stderr + done.stdout


def test_sigterm_shuts_a_program_down_gracefully(folder: Path, tmp_path: Path) -> None:
    config = f"ControlPlaneConfig(port={free_port()}, state_store_uri='sqlite:///{tmp_path / 'plane.db'}')"
    program = textwrap.dedent(f"""
        import asyncio, logging, sys
        from llama_deploy import *
        from cli_app import Repeat
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
        config = {config}
        service = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="repeat")
        async def main():
            await asyncio.gather(
                deploy_core(config, SimpleMessageQueueConfig(port=0)),
                deploy_workflow(Repeat(), service, config),
            )
        asyncio.run(main())
        """)
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any("registered as instance" in line for line in process.stdout)
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM
    assert (tmp_path / "plane.db").exists()
    assert not (tmp_path / "plane.db-wal").exists(), "the store was not closed"
