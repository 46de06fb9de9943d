"""llamactl as people use it: `serve` and `worker`."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.llamactl import ANY_PORTS, PATIENCE, environment, llamactl, started

from llama_deploy import Client
from llama_deploy.state_stores.migrations import SCHEMA_REVISION
from llama_deploy.testing.processes import free_port


class TestServe:
    def test_it_prints_what_it_serves(self, served: dict[str, Any]) -> None:
        repeat, sleep, count = served["services"]
        assert (repeat["service_name"], repeat["description"]) == ("repeat", "Repeats what it is told.")
        assert repeat["input_schema"]["required"] == ["message"]
        assert sleep["output_schema"]["properties"]["answer"]["type"] == "string"
        assert count["output_schema"] is None

    def test_its_json_says_where_the_data_is(self, folder: Path, served: dict[str, Any]) -> None:
        assert served["data_dir"] == str(folder / ".llama_deploy")
        assert served["state_store"] == f"sqlite:///{folder}/.llama_deploy/control_plane.db"
        current = llamactl(folder, "db", "current", "--store", served["state_store"], "--json")
        assert json.loads(current.stdout)["revision"] == SCHEMA_REVISION

    def test_the_printed_commands_work_when_pasted(self, folder: Path, tmp_path: Path) -> None:
        with started(folder, "serve", "cli_app:repeat", *ANY_PORTS, "--data-dir", str(tmp_path)) as process:
            lines: list[str] = []
            while not lines or not lines[-1].startswith("Press Ctrl-C"):
                lines.append(process.line())
            assert process.errors.read_text() == "", "what the announcement says is logged too"
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
                assert "Press Ctrl-C again" in process.error_line()
                time.sleep(0.4)  # two that follow too quickly count as one
                process.process.send_signal(signal.SIGINT)
                code, errors = process.wait()
        assert code == 0, errors
        assert "Handing back the running tasks" in errors
        assert "Traceback" not in errors

    @pytest.mark.parametrize(
        ("option", "url"), [("--port", "control_plane_url"), ("--queue-port", "message_queue_url")]
    )
    def test_a_port_in_use(
        self, folder: Path, served: dict[str, Any], tmp_path: Path, option: str, url: str
    ) -> None:
        port = served[url].rpartition(":")[2]
        # The last of two equal options counts.
        ports = (*ANY_PORTS, option, port)
        done = llamactl(folder, "serve", "cli_app:repeat", *ports, "--data-dir", str(tmp_path))
        error, hint = done.stderr.splitlines()[-2:]
        assert done.returncode == 1
        assert error == f"error: cannot listen on 127.0.0.1:{port} ({option}): another process uses this port"
        assert hint.startswith(
            f"hint: stop that process, or pass a different {option}; 0 selects a free port"
        )
        assert "Traceback" not in done.stderr

    def test_one_port_for_two_parts(self, folder: Path, tmp_path: Path) -> None:
        port = str(free_port())
        ports = ("--port", port, "--queue-port", port)
        done = llamactl(folder, "serve", "cli_app:repeat", *ports, "--data-dir", str(tmp_path))
        assert done.returncode == 2
        assert f"--port and --queue-port are both {port}" in done.stderr

    def test_an_address_of_another_machine(self, folder: Path, tmp_path: Path) -> None:
        host = ("--host", "203.0.113.1", "--allow-remote")
        done = llamactl(folder, "serve", "cli_app:repeat", *host, *ANY_PORTS, "--data-dir", str(tmp_path))
        assert done.returncode == 1
        assert "cannot listen on 203.0.113.1" in done.stderr
        assert "pass a --host that is an address of this machine" in done.stderr

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
            ("cli_app:nothing", "Asking, Count, Keeps, Proposing, Repeat, Sleep, Waiting, keeps, repeat", 2),
            ("cli_app:number", "is not a workflow but int", 2),
            ("cli_app:needs_something", "calling cli_app:needs_something without arguments failed", 1),
            ("cli_app:has_no_model", "calling cli_app:has_no_model without arguments failed: OSError: no", 1),
            ("cli_app:makes_later", "cli_app:makes_later returned a coroutine", 1),
            ("cli_app:Ask", "calling cli_app:Ask without arguments failed", 1),
            ("cli_app:settings", "returned an object of the class dict, which is not a Workflow", 1),
            ("broken:repeat", "No module named 'there_is_no_such_module'", 1),
            ("..=cli_app:repeat", "'..' is not a valid service name", 2),
            ("control_plane=cli_app:repeat", "reserved", 2),
        ],
    )
    def test_an_invalid_target(self, folder: Path, tmp_path: Path, target: str, text: str, code: int) -> None:
        done = llamactl(folder, "serve", target, *ANY_PORTS, "--data-dir", str(tmp_path))
        assert text in done.stderr
        assert done.returncode == code
        assert "Traceback" not in done.stderr

    @pytest.mark.usefixtures("served")
    def test_what_the_user_must_change_is_said_first(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The data directory is in use too."""
        monkeypatch.setenv("LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS", "many")
        done = llamactl(folder, "serve", "broken:repeat", *ANY_PORTS)
        assert done.returncode == 2
        assert done.stderr.count("error:") == 1
        assert "MAX_CONCURRENT_TASKS" in done.stderr

    @pytest.mark.usefixtures("served")
    def test_only_one_of_several_errors_is_told(self, folder: Path) -> None:
        done = llamactl(folder, "serve", "broken:repeat", *ANY_PORTS)
        assert done.returncode == 1
        assert done.stderr.count("error:") == 1
        assert "another control plane" in done.stderr

    def test_two_services_with_the_same_name(self, folder: Path) -> None:
        done = llamactl(folder, "serve", "cli_app:repeat", "repeat=cli_app:Sleep")
        assert (done.returncode, "two services have the name 'repeat'" in done.stderr) == (2, True)

    def test_verbose_shows_the_traceback(self, folder: Path, tmp_path: Path) -> None:
        own = (*ANY_PORTS, "--data-dir", str(tmp_path))
        assert "Traceback" in llamactl(folder, "--verbose", "serve", "broken:repeat", *own).stderr

    def test_other_machines_need_allow_remote(self, folder: Path) -> None:
        done = llamactl(folder, "serve", "cli_app:repeat", "--host", "0.0.0.0")  # noqa: S104 - refused
        assert (done.returncode, "--allow-remote" in done.stderr) == (2, True)

    @pytest.mark.parametrize("command", ["serve", "worker"])
    def test_each_run_of_a_class_or_a_function_has_its_own_object(
        self, folder: Path, server: str, tmp_path: Path, command: str
    ) -> None:
        targets = [f"{command}-{name}=cli_app:{name}" for name in ("Keeps", "keeps_too", "keeps")]
        before = () if command == "serve" else ("-s", server)
        options = ("--data-dir", str(tmp_path), *ANY_PORTS) if command == "serve" else ()
        with started(folder, *before, command, *targets, *options, "--json") as process:
            url = json.loads(process.line())["control_plane_url"]

            def runs(name: str) -> list[Any]:
                results = [
                    llamactl(folder, "run", f"{command}-{name}", f"given={given}", "--json", "-q", server=url)
                    for given in "ab"
                ]
                return [json.loads(done.stdout)["result"] for done in results]

            assert [runs(name) for name in ("Keeps", "keeps_too")] == [[["a"], ["b"]]] * 2
            assert runs("keeps") == [["a"], ["a", "b"]]
            errors = process.end(signal.SIGINT)[1]
        assert errors.count("has changed `self.given`, which all runs share") == 1
        assert f"service {command}-keeps: the step 'keep'" in errors

    def test_a_file_may_have_the_name_of_a_library(self, folder: Path, tmp_path: Path) -> None:
        with started(
            folder, "serve", "nested/workflows.py:repeat", *ANY_PORTS, "--json", "--data-dir", str(tmp_path)
        ) as process:
            url = json.loads(process.line())["control_plane_url"]
            done = llamactl(folder, "run", "repeat", "message=hi", server=url)
        assert done.stdout.splitlines()[-1] == "hi", done.stderr


class TestAllowedTypes:
    """Events that appear only in `ctx.wait_for_event`, and are imported where they are waited for."""

    APP = """
        from workflows import Context, Workflow, step
        from workflows.events import StartEvent, StopEvent

        class Asks(Workflow):
            @step
            async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
                from outside import Approve

                return StopEvent(result=(await ctx.wait_for_event(Approve)).by)
        """
    OUTSIDE = """
        from workflows.events import Event

        class Approve(Event):
            by: str
        """

    @pytest.fixture
    def asking(self, tmp_path: Path) -> Path:
        (tmp_path / "asks.py").write_text(textwrap.dedent(self.APP))
        (tmp_path / "outside.py").write_text(textwrap.dedent(self.OUTSIDE))
        return tmp_path

    @pytest.mark.parametrize("allowed", [True, False])
    def test_an_event_is_accepted_if_its_class_is_named(self, asking: Path, *, allowed: bool) -> None:
        options = ("--allow-type", "outside:Approve") if allowed else ()
        with started(asking, "serve", "asks.py:Asks", *ANY_PORTS, "--json", *options) as process:
            url = json.loads(process.line())["control_plane_url"]
            with Client(url).sync as client:
                task = client.submit("Asks")
                sent = llamactl(asking, "send", task.task_id, "by=Ada", "--event", "Approve", server=url)
                if allowed:
                    assert sent.returncode == 0, sent.stderr
                    assert task.result() == "Ada"
                else:
                    assert sent.returncode != 0
                    assert "--allow-type" in sent.stderr
                    assert "LLAMA_DEPLOY_WF_SERVICE_ALLOWED_TYPES" in sent.stderr

    def test_a_class_that_does_not_exist_is_reported(self, asking: Path) -> None:
        done = llamactl(asking, "serve", "asks.py:Asks", *ANY_PORTS, "--allow-type", "outside:Missing")
        assert done.returncode != 0
        assert "'outside:Missing', which cannot be imported" in done.stderr


class TestWorker:
    def test_it_joins_a_control_plane(self, folder: Path, server: str) -> None:
        with started(folder, "-s", server, "worker", "late=cli_app:Count", "--json") as worker:
            facts = json.loads(worker.line())
            assert facts["services"][0]["service_name"] == "late"
            assert facts["pid"] == worker.process.pid
            done = llamactl(folder, "run", "late", "given=joined", "--json", "-q", server=server)
            assert json.loads(done.stdout)["result"] == {"count": 1, "given": "joined"}
            assert worker.end(signal.SIGTERM)[0] == 0
        done = llamactl(folder, "-t", "0.5", "run", "late", server=server)
        assert "no instance of late is alive" in done.stderr

    def test_it_uses_the_next_replica(self, folder: Path, server: str) -> None:
        servers = f"http://127.0.0.1:{free_port()}, {server}/"
        with started(folder, "-s", servers, "worker", "again=cli_app:Count", "--json") as worker:
            assert json.loads(worker.line())["services"][0]["service_name"] == "again"
            done = llamactl(folder, "run", "again", "--json", "-q", server=servers)
            assert json.loads(done.stdout)["result"]["count"] == 1, done.stderr
            assert worker.end(signal.SIGTERM)[0] == 0

    def test_it_waits_for_the_control_plane(self, folder: Path, tmp_path: Path) -> None:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with started(folder, "-s", url, "worker", "cli_app:repeat", "cli_app:Sleep", "--json") as worker:
            waiting = worker.error_line()
            assert waiting == f"Waiting for a control plane at {url}: Connection refused"
            with started(
                folder,
                *("serve", "cli_app:Sleep", "--json", "--data-dir", str(tmp_path)),
                *("--port", str(port), "--queue-port", "0"),
            ) as process:
                process.line()
                assert json.loads(worker.line())["services"][0]["service_name"] == "repeat"
                code, errors = worker.end(signal.SIGINT)
        assert code == 0
        assert errors.splitlines()[:2] == [
            waiting,
            "hint: start one with `llamactl serve`, or pass another URL: llamactl -s URL worker ...",
        ]
        assert "retrying" not in errors, "it says twice what it waits for"


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
