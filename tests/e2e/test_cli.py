"""llamactl as people use it: options, tasks, sessions and the state store."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.e2e.llamactl import ANY_PORTS, PATIENCE, llamactl, llamactl_in_terminal, started

from llama_deploy.cli.app import app
from llama_deploy.client import SyncClient
from llama_deploy.errors import ServiceNotFoundError
from llama_deploy.state_stores.migrations import SCHEMA_REVISION
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import free_port
from llama_deploy.types import ServiceDefinition


class TestOptions:
    """The options that all commands have. They stand before or after the command."""

    @pytest.mark.parametrize(
        "command",
        [
            ("run", "repeat", "message=hi", "-s", "{url}"),
            ("run", "--server", "{url}", "-t", "20", "-v", "repeat", "message=hi"),
            ("run", "--log-format", "json", "-k", "repeat", "message=hi", "--server={url}"),
            ("-s", "http://127.0.0.1:1", "run", "repeat", "message=hi", "-s", "{url}"),
            ("status", "-s", "{url}"),
            ("sessions", "create", "-s", "{url}"),
            ("sessions", "-s", "{url}", "create"),
        ],
    )
    def test_they_may_stand_after_the_command(
        self, folder: Path, server: str, command: tuple[str, ...]
    ) -> None:
        done = llamactl(folder, *(each.format(url=server) for each in command))
        assert done.returncode == 0, done.stderr

    def test_a_time_limit_after_the_command(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "sleep", "seconds=5", "-t", "0.5", "-s", server)
        assert (done.returncode, "is still running" in done.stderr) == (124, True)

    def test_what_is_no_option_is_rejected(self, folder: Path) -> None:
        done = llamactl(folder, "run", "repeat", "--control-plane", "1")
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
        for line in ((*options, command, "cli_app:repeat"), (command, "cli_app:repeat", *options)):
            done = llamactl(folder, *line)
            assert done.returncode == 2
            assert f"has no effect on `llamactl {command}`" in done.stderr

    @pytest.mark.parametrize("command", [("status",), ("worker", "cli_app:repeat")])
    def test_a_server_that_is_not_a_url(self, folder: Path, command: tuple[str, ...]) -> None:
        done = llamactl(folder, *command, server="nowhere:1")
        assert done.returncode == 2
        assert "http:// or https://" in done.stderr

    def test_credentials_in_the_url_are_not_shown(self, folder: Path, server: str) -> None:
        secret = server.replace("//", "//ann:S3cret@")
        shown = ""
        for command in (("status",), ("status", "--json"), ("-v", "run", "asks"), ("-v", "run", "repeat")):
            done = llamactl(folder, *command, server=secret)
            shown += done.stdout + done.stderr
        done = llamactl(folder, "-v", "status", server=f"http://ann:S3cret@127.0.0.1:{free_port()}")
        assert done.returncode == 3
        shown += done.stdout + done.stderr
        assert server in shown
        assert "S3cret" not in shown
        assert "ann:" not in shown

    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("LLAMA_DEPLOY_API_KEY", "S3cret\n", "the API key has a line break"),
            ("LLAMA_DEPLOY_HEADERS", "X-Key: S3cret", "LLAMA_DEPLOY_HEADERS is not valid"),
            ("LLAMA_DEPLOY_HEADERS", '{"X-Key": ["S3cret"]}', "LLAMA_DEPLOY_HEADERS.X-KEY is not valid"),
            ("LLAMA_DEPLOY_HEADERS", '{"X-Key": "S3cret\\n"}', "the header 'X-Key'"),
        ],
    )
    def test_a_secret_that_cannot_be_sent(
        self, folder: Path, server: str, name: str, value: str, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, value)
        done = llamactl(folder, "status", server=server)
        assert done.returncode in {1, 2}
        assert text in done.stderr
        assert "S3cret" not in done.stderr
        assert "Traceback" not in done.stderr

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


COMMANDS = (
    *("", "serve", "worker", "run", "send", "status"),
    *("sessions", *(f"sessions {command}" for command in ("list", "show", "create", "fork", "delete"))),
    *("tasks", *(f"tasks {command}" for command in ("list", "show", "count", "events", "wait"))),
    *(f"tasks {command}" for command in ("retry", "cancel", "export", "import", "move")),
    *("inbox", *(f"inbox {name}" for name in ("list", "show", "answer", "refuse", "assign", "callback"))),
    *("audit", "keys", "keys create", "keys list", "keys revoke"),
    *("db", "db current", "db upgrade"),
    *(f"db {name}" for name in ("size", "purge", "vacuum", "backup", "restore", "copy")),
)


@pytest.mark.parametrize("command", COMMANDS)
class TestHelp:
    """`--help` is complete and readable at 80 columns."""

    def test_in_a_pipe(self, folder: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        done = llamactl(folder, *command.split(), "--help")
        assert done.returncode == 0, done.stderr
        self._check(command, done.stdout)

    def test_in_a_terminal(self, folder: Path, command: str) -> None:
        self._check(command, llamactl_in_terminal(folder, *command.split(), "--help", columns=80))

    def _check(self, path: str, shown: str) -> None:
        command: Any = typer.main.get_command(app)
        for name in path.split():
            command = command.commands[name]
        assert f"Usage: llamactl {path}".strip() in shown
        assert max(map(len, shown.splitlines())) <= 80
        texts = [command.help, *(parameter.help for parameter in command.params)]
        names = [parameter.envvar for parameter in command.params]
        summaries = [child.help.partition(".")[0] for child in getattr(command, "commands", {}).values()]
        words = {word for text in (*texts, *names, *summaries) if text for word in text.split()}
        assert {word for word in words if word not in shown} == set()
        assert "…" not in shown
        assert [line for line in shown.splitlines() if line.endswith("...") and "Usage" not in line] == []


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
        first, *events, result = map(json.loads, done.stdout.splitlines())
        assert first == {"task_id": result["task_id"], "session_id": result["session_id"]}
        assert [(event["index"], event["type"], event["data"]) for event in events] == [
            (0, "Progress", {"text": "ho 0"}),
            (1, "Progress", {"text": "ho 1"}),
        ]
        assert (result["result"], result["status"]) == ("hoho", "succeeded")

    def test_values_are_json_or_strings(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "count", 'given=["a", 1]', "--json", server=server)
        assert json.loads(done.stdout.splitlines()[-1])["result"]["given"] == ["a", 1]

    def test_a_number_where_a_string_is_expected(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "repeat", "message=12", "times=2", server=server)
        assert done.stdout.splitlines()[-1] == "1212"

    def test_a_session_keeps_its_state(self, folder: Path, server: str) -> None:
        session = llamactl(folder, "sessions", "create", server=server).stdout.strip()
        counts = [
            json.loads(
                llamactl(
                    folder, "run", "count", "--session", session, "--quiet", "--json", server=server
                ).stdout
            )
            for _ in range(2)
        ]
        assert [count["result"]["count"] for count in counts] == [1, 2]
        assert counts[0]["session_id"] == session

    def test_a_failed_task(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "repeat", "message=boom", server=server)
        assert done.returncode == 1
        assert done.stdout == 'Progress  {"text": "boom 0"}\n'
        assert "failed: ValueError: a bad message" in done.stderr
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
        done = llamactl(folder, "run", "repeat", "times=[2]", server=server)
        assert done.returncode == 2
        assert "message: missing, expected a string" in done.stderr
        assert "times: expected an integer, not" in done.stderr
        assert "It takes: message, times" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["hello"], "'hello' is not a run argument"),
            (["a=1", "a=2"], "'a' occurs twice"),
            (
                ["message=a", "times=two"],
                "the run argument 'times' must be an integer, and 'two' is not JSON",
            ),
            (["@missing.json"], "cannot read the file 'missing.json': No such file"),
        ],
    )
    def test_malformed_arguments(self, folder: Path, server: str, arguments: list[str], text: str) -> None:
        done = llamactl(folder, "run", "repeat", *arguments, server=server)
        assert (done.returncode, text in done.stderr) == (2, True)

    def test_an_unknown_service(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "repaet", server=server)
        assert done.returncode == 3
        with SyncClient(control_plane_url=server) as client, pytest.raises(ServiceNotFoundError) as caught:
            client.submit("repaet")
        assert "there is no service 'repaet'; did you mean 'repeat'?" in str(caught.value)
        assert done.stderr.splitlines()[0] == f"error: {caught.value}"

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
            assert set(json.loads(run.line())) == {"task_id", "session_id"}
            assert json.loads(run.line())["data"] == {"text": "begun"}
            code, errors = run.end(signal.SIGINT)
            result = json.loads(run.line())
        assert (code, result["status"]) == (130, "cancelled")
        assert "Cancelling the task" in errors

    def test_a_detached_task(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "sleep", "seconds=0.1", "--detach", server=server)
        assert (done.returncode, done.stderr) == (0, "")
        with SyncClient(server) as client:
            assert client.task(done.stdout.strip()).result(timeout=20) == {"answer": "slept"}
        first = json.loads(
            llamactl(folder, "run", "sleep", "seconds=0.1", "-d", "--json", server=server).stdout
        )
        assert set(first) == {"task_id", "session_id"}

    def test_a_task_id_makes_the_command_repeatable(self, folder: Path, server: str) -> None:
        command = ("run", "count", "--task-id", "count-once", "--json", "--quiet")
        once, twice = (json.loads(llamactl(folder, *command, server=server).stdout) for _ in range(2))
        assert once == twice
        assert once["task_id"] == "count-once"
        other = llamactl(folder, *command, "given=2", server=server)
        assert (other.returncode, "count-once" in other.stderr) == (1, True)

    def test_only_the_result(self, folder: Path, server: str) -> None:
        done = llamactl(folder, "run", "repeat", "message=ho", "times=2", "--quiet", server=server)
        assert (done.returncode, done.stdout, done.stderr) == (0, "hoho\n", "")

    def test_arguments_from_files(self, folder: Path, server: str) -> None:
        (folder / "all.json").write_text('{"message": "ho", "times": 2}')
        (folder / "message.txt").write_text("你好")
        whole = llamactl(folder, "run", "repeat", "@all.json", "-q", server=server)
        assert (whole.stdout, whole.stderr) == ("hoho\n", "")
        one = llamactl(folder, "run", "repeat", "message=@message.txt", "times=2", "-q", server=server)
        assert (one.stdout, one.stderr) == ("你好你好\n", "")

    @pytest.mark.parametrize(
        "variables",
        [
            {"LANG": "C"},
            {"LC_ALL": "C"},
            {"PYTHONIOENCODING": "ascii"},
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        ],
    )
    def test_characters_that_the_terminal_does_not_have(
        self, folder: Path, server: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("LANG", "LC_ALL", "LC_CTYPE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        done = llamactl(folder, "run", "repeat", "message=你好🦙", "times=1", server=server)
        assert done.returncode == 0, done.stderr
        shown = done.stdout.splitlines()[-1]
        assert shown in {"你好🦙", r"\u4f60\u597d\U0001f999"}
        done = llamactl(folder, "run", "repeat", "message=你好🦙", "--json", server=server)
        *_, event, result = map(json.loads, done.stdout.splitlines())
        assert (event["data"], result["result"]) == ({"text": "你好🦙 0"}, "你好🦙")
        failed = llamactl(folder, "run", "你好", server=server)
        assert (failed.returncode, "Traceback" in failed.stderr) == (3, False)

    def test_the_server_may_come_from_the_environment(
        self, folder: Path, server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", server)
        assert llamactl(folder, "run", "repeat", "message=hi").returncode == 0


@pytest.fixture(scope="module")
def asking(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a control plane whose workflows ask."""
    own = (*ANY_PORTS, "--data-dir", str(tmp_path_factory.mktemp("asking")), "--json")
    workflows = ("asking=cli_app:Asking", "proposing=cli_app:Proposing")
    with started(folder, "serve", *workflows, *own) as serving:
        yield json.loads(serving.line())["control_plane_url"]


class TestQuestions:
    """`run` says how to answer, and `send` answers."""

    def _command(self, hint: str) -> list[str]:
        told = re.fullmatch(r"hint: answer from another terminal: llamactl (.+)", hint)
        assert told, hint
        return shlex.split(told[1])

    def test_the_command_for_the_answer_is_shown_with_the_question(self, folder: Path, asking: str) -> None:
        with started(folder, "-s", asking, "run", "asking") as run:
            assert run.line() == 'InputRequiredEvent  {"prefix": "Sure?"}'
            # It comes long before the run is parked.
            hint = run.error_line()
            *command, field = self._command(hint)
            assert field == "response=..."
            sent = llamactl(folder, *command, "response=yes")
            assert (sent.returncode, sent.stderr) == (0, "")
            assert sent.stdout == f"Sent HumanResponseEvent to task {command[-1]}.\n"
            assert run.line() == "yes"
            assert run.wait() == (0, hint + "\n")

    def test_an_answer_of_a_class_of_the_workflow(self, folder: Path, asking: str) -> None:
        with started(folder, "-s", asking, "run", "proposing", "price=7") as run:
            assert run.line() == 'Proposal  {"price": 7}'
            *command, field = self._command(run.error_line())
            assert field == "KEY=VALUE"
            assert command[-2:] == ["--event", "Decision"]
            sent = llamactl(folder, *command, "approved=true", "--json")
            assert json.loads(sent.stdout) == {"task_id": command[-3], "event": "Decision"}
            assert run.line() == "bought"

    def test_a_question_of_a_service_that_starts_after_the_task(self, folder: Path, asking: str) -> None:
        with SyncClient(asking) as client:
            client.core.services.register(ServiceDefinition(service_name="late"))
        with (
            started(folder, "-s", asking, "run", "late") as run,
            started(folder, "-s", asking, "worker", "late=cli_app:Proposing"),
        ):
            assert run.line() == 'Proposal  {"price": 3}'
            asyncio.run(eventually(lambda: "hint: " in run.errors.read_text(), seconds=PATIENCE))
            *command, _ = self._command(run.errors.read_text().splitlines()[-1])
            assert command[-2:] == ["--event", "Decision"]
            assert llamactl(folder, *command, "approved=true").returncode == 0
            assert run.line() == "bought"

    def test_a_run_that_waits_without_a_question(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAMA_DEPLOY_WF_SERVICE_IDLE_TIMEOUT", "0")
        own = (*ANY_PORTS, "--data-dir", str(tmp_path), "--json")
        with started(folder, "serve", "cli_app:Waiting", *own) as serving:
            url = json.loads(serving.line())["control_plane_url"]
            with started(folder, "-s", url, "run", "Waiting") as run:
                shown, _, classes = run.error_line().partition(", where CLASS is ")
                assert classes == "Decision or HumanResponseEvent"
                *command, field = self._command(shown.replace("CLASS", "HumanResponseEvent"))
                assert field == "KEY=VALUE"
                assert llamactl(folder, *command, "response=hi").returncode == 0
                assert run.line() == "hi"

    def test_a_run_of_a_late_service_that_waits_without_a_question(self, folder: Path, asking: str) -> None:
        with SyncClient(asking) as client:
            client.core.services.register(ServiceDefinition(service_name="silent"))
        with (
            started(folder, "-s", asking, "run", "silent") as run,
            started(folder, "-s", asking, "worker", "silent=cli_app:Waiting"),
        ):
            asyncio.run(eventually(lambda: "hint: " in run.errors.read_text(), seconds=PATIENCE))
            assert run.errors.read_text().endswith(", where CLASS is Decision or HumanResponseEvent\n")

    @pytest.mark.parametrize(
        ("arguments", "code", "text"),
        [
            (["nothing", "response=yes"], 3, "there is no task nothing"),
            (["{task}", "yes"], 2, "'yes' is not a field"),
            (["{task}", "--event", "Nope"], 2, "does not accept events of the class 'Nope'"),
            (["{ended}", "response=yes"], 1, "has ended"),
        ],
    )
    def test_what_cannot_be_sent(
        self, folder: Path, asking: str, arguments: list[str], code: int, text: str
    ) -> None:
        with SyncClient(control_plane_url=asking) as client:
            task, ended = client.submit("asking"), client.submit("asking")
            ended.cancel()
            given = [each.format(task=task.task_id, ended=ended.task_id) for each in arguments]
            done = llamactl(folder, "send", *given, server=asking)
            task.cancel()
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr


def test_a_session_is_created_for_scripts(folder: Path, server: str) -> None:
    created = json.loads(llamactl(folder, "sessions", "create", "--json", server=server).stdout)
    assert list(created) == ["session_id"]
    done = llamactl(folder, "run", "count", "--session", created["session_id"], "--json", server=server)
    assert json.loads(done.stdout.splitlines()[-1])["session_id"] == created["session_id"]


class TestErrorsForPrograms:
    """With `--json`, an error is one line of JSON on stderr."""

    @pytest.mark.parametrize(
        ("arguments", "error", "code"),
        [
            (["sessions", "show", "nothing", "--json"], "session_not_found", 3),
            (["run", "nobody", "--json"], "service_not_found", 3),
            (["send", "nothing", "response=yes", "--json"], "task_not_found", 3),
            (["sessions", "list", "--cursor", "x", "--json"], "invalid_cursor", 2),
            (["db", "current", "--store", "nothing://", "--json"], "config_error", 1),
        ],
    )
    def test_an_error(self, folder: Path, server: str, arguments: list[str], error: str, code: int) -> None:
        done = llamactl(folder, *arguments, server=None if arguments[0] == "db" else server)
        told = json.loads(done.stderr)
        assert (told["error"], told["exit_code"], done.returncode) == (error, code, code)
        assert told["message"]
        assert told.keys() == {"error", "message", "hint", "exit_code", "facts"}

    def test_a_control_plane_that_does_not_answer(self, folder: Path) -> None:
        done = llamactl(folder, "status", "--json", "-t", "1", server="http://127.0.0.1:1")
        told = json.loads(done.stderr)
        assert (told["error"], told["exit_code"], done.returncode) == ("unavailable", 3, 3)
        assert "llamactl serve" in told["hint"]


class TestSessions:
    """`llamactl sessions`."""

    def test_a_session_from_its_beginning_to_its_end(self, folder: Path, server: str) -> None:
        def sessions(*arguments: str) -> str:
            done = llamactl(folder, "sessions", *arguments, server=server)
            assert done.returncode == 0, done.stderr
            return done.stdout

        policy = ("--policy", "parallel_while_waiting", "--tag", "spring")
        session = sessions("create", *policy).strip()
        run = llamactl(folder, "run", "repeat", "message=hi", "--session", session, "--json", server=server)
        task = json.loads(run.stdout.splitlines()[-1])["task_id"]
        [listed] = json.loads(sessions("list", "--tag", "spring", "--json"))["items"]
        assert (listed["session_id"], listed["policy"]) == (session, "parallel_while_waiting")
        assert session in sessions("list", "--limit", "1000")
        shown = sessions("show", session)
        assert all(text in shown for text in (session, task, "succeeded", 'repeat(message="hi")')), shown
        [item] = json.loads(sessions("show", session, "--json"))["history"]
        assert (item["task_id"], item["arguments"]) == (task, {"message": "hi"})
        fork = sessions("fork", session, "--at", task).strip()
        assert fork in sessions("list", "--tag", "spring")
        assert session in sessions("delete", session)
        assert llamactl(folder, "sessions", "show", session, server=server).returncode == 3
        assert sessions("list", "--tag", "none") == ""

    def test_pages_name_the_command_for_the_next_one(self, folder: Path, server: str) -> None:
        for _ in range(2):
            llamactl(folder, "sessions", "create", "--tag", "paged", server=server)
        first = llamactl(folder, "sessions", "list", "--tag", "paged", "--limit", "1", server=server)
        command = first.stderr.splitlines()[-1].partition("llamactl ")[2]
        second = llamactl(folder, *shlex.split(command), server=server)
        assert second.returncode == 0, second.stderr
        assert "more sessions" not in second.stderr

    def test_a_session_with_an_open_task_is_deleted_on_request_only(self, folder: Path, asking: str) -> None:
        session = llamactl(folder, "sessions", "create", server=asking).stdout.strip()
        llamactl(folder, "run", "asking", "--session", session, "--detach", server=asking)
        refused = llamactl(folder, "sessions", "delete", session, server=asking)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"error: session {session} has an open task\n" in refused.stderr
        command = refused.stderr.partition("llamactl ")[2]
        assert llamactl(folder, *shlex.split(command), server=asking).returncode == 0

    @pytest.mark.parametrize(
        ("arguments", "code", "text"),
        [
            (["show", "nothing"], 3, "there is no session nothing"),
            (["delete", "nothing"], 3, "there is no session nothing"),
            (["fork", "nothing"], 3, "there is no session nothing"),
            (["create", "--policy", "none"], 2, "parallel_while_waiting"),
            (["list", "--cursor", "x"], 2, "is not a cursor"),
        ],
    )
    def test_what_cannot_be_done(
        self, folder: Path, server: str, arguments: list[str], code: int, text: str
    ) -> None:
        done = llamactl(folder, "sessions", *arguments, server=server)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr


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
        [service] = [each for each in facts["services"] if each["service_name"] == "repeat"]
        [(version, count)] = service.pop("versions").items()
        assert (len(version), count) == (24, 1)
        assert service == {
            "service_name": "repeat",
            "description": "Repeats what it is told.",
            "instances_alive": 1,
            "stranded": [],
            "blocked": [],
        }
        assert facts["next_after"] is None

    def test_many_services_are_shown_in_pages(self, folder: Path, server: str) -> None:
        names = [
            each["service_name"]
            for each in json.loads(llamactl(folder, "status", "--json", server=server).stdout)["services"]
        ]
        shown = llamactl(folder, "status", "--limit", "1", server=server).stdout
        assert f"There are more services: llamactl status --after {names[0]}" in shown
        options = ("--limit", "1", "--after", names[0], "--json")
        page = json.loads(llamactl(folder, "status", *options, server=server).stdout)
        assert [each["service_name"] for each in page["services"]] == [names[1]]
        rest = llamactl(folder, "status", "--after", names[-1], server=server).stdout
        assert "No services follow" in rest

    @pytest.mark.parametrize("options", [(), ("--json",)])
    def test_a_task_without_a_session_does_not_change_it(
        self, folder: Path, server: str, options: tuple[str, ...]
    ) -> None:
        before = llamactl(folder, "status", *options, server=server).stdout
        assert llamactl(folder, "run", "repeat", "message=hi", server=server).returncode == 0
        assert llamactl(folder, "status", *options, server=server).stdout == before

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


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("run", "repeat", "message=ho"),
        ("send", "task", "response=yes"),
        ("sessions", "create"),
        ("worker", "again=cli_app:repeat"),
    ],
)
def test_the_url_of_the_message_queue(folder: Path, served: dict[str, Any], command: tuple[str, ...]) -> None:
    url = str(served["message_queue_url"])
    done = llamactl(folder, *command, server=url)
    assert done.returncode == 3
    assert f"error: {url}: this is the message queue, not the control plane" in done.stderr
    assert "Traceback" not in done.stderr
