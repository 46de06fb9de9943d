"""llamactl with authentication: who has no key can do nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.llamactl import ANY_PORTS, PATIENCE, Process, environment, llamactl, started

from llama_deploy.testing.conditions import eventually

ADMIN = "admin-key-of-thirty-two-characters-or-more"
ENVIRONMENT = """
import os
from pathlib import Path
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

class Environment(Workflow):
    @step
    async def look(self, ev: StartEvent) -> StopEvent:
        started_with = Path("/proc/self/environ").read_text().split("\\0")
        names = {*os.environ, *(each.partition("=")[0] for each in started_with)}
        return StopEvent(result=[name for name in names if name.upper().endswith(ev.name)])
"""
PROGRAMS = Path(__file__).parent / "programs"


@contextmanager
def flood(server: str) -> Iterator[None]:
    """Send wrong keys all the time. Begins when the first of them was refused without a look-up."""
    is_limited, is_over = threading.Event(), threading.Event()

    def send() -> None:
        for number in itertools.count():
            if is_over.wait(0.05 if is_limited.is_set() else 0):
                return
            connection = HTTPConnection(server.removeprefix("http://"))
            with closing(connection):
                connection.request("GET", "/", headers={"authorization": f"Bearer wrong-{number}"})
                if connection.getresponse().status == HTTPStatus.TOO_MANY_REQUESTS:
                    is_limited.set()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert is_limited.wait(PATIENCE)
        yield
    finally:
        is_over.set()
        thread.join(PATIENCE)


def key(text: str) -> dict[str, str]:
    return {"LLAMA_DEPLOY_API_KEY": text}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(PROGRAMS / "cli_app.py", folder)
    (folder / "environment.py").write_text(ENVIRONMENT)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[dict[str, Any]]:
    """`llamactl serve --auth keys`, which other machines reach: what it announced."""
    programs = ("cli_app:repeat", "environment=environment:Environment")
    arguments = ("serve", *programs, *ANY_PORTS, "--host", "0.0.0.0", "--auth", "keys", "--json")  # noqa: S104
    with started(folder, *arguments, env={"CONTROL_PLANE_ADMIN_KEY": ADMIN}) as process:
        facts: dict[str, Any] = json.loads(process.line())
        yield facts
        code, errors = process.end(signal.SIGINT)
        assert code == 0
        assert ADMIN not in errors


@pytest.fixture(scope="module")
def server(served: dict[str, Any]) -> str:
    return str(served["control_plane_url"]).replace("0.0.0.0", "127.0.0.1")  # noqa: S104


def test_who_has_a_key_runs_tasks_and_others_do_not(folder: Path, server: str) -> None:
    done = llamactl(folder, "run", "repeat", "message=hi", server=server, env=key(ADMIN))
    assert done.stdout.splitlines()[-1] == "hi", done.stderr
    for given in ({}, key("a-key-that-nobody-has-created")):
        refused = llamactl(folder, "run", "repeat", "message=hi", "--json", server=server, env=given)
        assert refused.returncode == 1
        error = json.loads(refused.stderr.splitlines()[-1])
        assert error["error"] == "unauthenticated"
        assert "LLAMA_DEPLOY_API_KEY" in error["hint"]
        assert "a-key-that-nobody" not in refused.stderr + refused.stdout


def test_steps_do_not_see_the_admin_key(folder: Path, server: str) -> None:
    def seen(name: str) -> object:
        done = llamactl(
            folder, "run", "environment", f"name={name}", "--quiet", server=server, env=key(ADMIN)
        )
        return json.loads(done.stdout)

    assert seen("ADMIN_KEY") == []
    assert seen("NO_COLOR") == ["NO_COLOR"]


def test_a_worker_needs_a_key_and_reaches_the_queue_with_it(folder: Path, server: str) -> None:
    with started(folder, "-s", server, "worker", "other=cli_app:repeat", "--json", env=key(ADMIN)) as process:
        assert json.loads(process.line())
        done = llamactl(folder, "run", "other", "message=hi", server=server, env=key(ADMIN))
        assert done.stdout.splitlines()[-1] == "hi", done.stderr
        assert process.end(signal.SIGINT)[0] == 0
    with started(folder, "-s", server, "worker", "other=cli_app:repeat", "--json") as process:
        code, errors = process.wait()
    assert code == 1
    assert "requires a key" in errors


@contextmanager
def worker_of_flooded_address(folder: Path, server: str) -> Iterator[Process]:
    """Start a worker whose key is refused because others from its address are wrong.

    On a slow machine, the others may pause and let a new key in. Then another worker is started.
    """
    arguments = ("keys", "create", "--scope", "services:host", "--scope", "tasks:write", "--expires", "1d")
    while True:
        new = llamactl(folder, *arguments, server=server, env=key(ADMIN)).stdout.strip()
        with started(folder, "-s", server, "worker", "late=cli_app:repeat", "--json", env=key(new)) as worker:
            asyncio.run(
                eventually(
                    lambda: worker.has_output() or "too many keys" in worker.errors.read_text(),
                    seconds=PATIENCE,
                )
            )
            if not worker.has_output():
                yield worker
                return


def test_wrong_keys_end_no_worker_of_their_address(folder: Path, server: str) -> None:
    with ExitStack() as stack:
        with flood(server):
            process = stack.enter_context(worker_of_flooded_address(folder, server))
            done = llamactl(folder, "run", "repeat", "message=hi", server=server, env=key(ADMIN))
            assert done.stdout.splitlines()[-1] == "hi", done.stderr
        assert json.loads(process.line())
        done = llamactl(folder, "run", "late", "message=hi", server=server, env=key(ADMIN))
        assert done.stdout.splitlines()[-1] == "hi", done.stderr
        assert process.end(signal.SIGINT)[0] == 0


def test_other_machines_are_not_let_in_without_keys(folder: Path) -> None:
    refused = llamactl(folder, "serve", "cli_app:repeat", *ANY_PORTS, "--host", "0.0.0.0")  # noqa: S104
    assert refused.returncode == 2
    assert "--auth keys" in refused.stderr


def test_keys_are_created_listed_and_revoked(folder: Path, server: str) -> None:
    arguments = ("keys", "create", "--scope", "tasks:read", "--scope", "tasks:write", "--expires", "30d")
    created = llamactl(folder, *arguments, "--name", "a client", server=server, env=key(ADMIN))
    assert created.returncode == 0, created.stderr
    own = created.stdout.strip()
    key_id = own.split("_")[1]
    assert key_id in created.stderr
    done = llamactl(folder, "run", "repeat", "message=hi", server=server, env=key(own))
    assert done.stdout.splitlines()[-1] == "hi", done.stderr
    denied = llamactl(folder, "keys", "list", "--json", server=server, env=key(own))
    error = json.loads(denied.stderr)
    assert (error["error"], error["facts"]) == ("permission_denied", {"scope": "admin"})
    listed = llamactl(folder, "keys", "list", server=server, env=key(ADMIN)).stdout
    assert "tasks:read, tasks:write" in listed
    assert "a client" in listed
    assert own not in listed
    owned = llamactl(
        folder, *arguments, "--tenant", "acme", "--subject", "zoe", server=server, env=key(ADMIN)
    )
    made = owned.stdout.strip()
    listed = llamactl(folder, "keys", "list", server=server, env=key(ADMIN)).stdout
    assert re.search(r"tasks:read, tasks:write +acme +zoe +expires", listed)
    done = llamactl(folder, "run", "repeat", "message=hi", server=server, env=key(made))
    assert done.stdout.splitlines()[-1] == "hi", done.stderr
    of_acme, of_default = (
        {task["task_id"] for task in json.loads(shown.stdout)["items"]}
        for sent in (made, own)
        if (shown := llamactl(folder, "tasks", "list", "--json", server=server, env=key(sent))).returncode
        == 0
    )
    assert len(of_acme) == 1
    assert of_default
    assert not of_acme & of_default
    wrong = llamactl(folder, *arguments, "--tenant", "no tenant", server=server, env=key(ADMIN))
    assert wrong.returncode == 2
    assert "--tenant" in wrong.stderr
    revoked = llamactl(folder, "keys", "revoke", key_id, server=server, env=key(ADMIN))
    assert revoked.returncode == 0
    audited = llamactl(folder, "audit", "--target", key_id, "--json", server=server, env=key(ADMIN)).stdout
    found = [json.loads(line) for line in audited.splitlines()]
    assert [(each["action"], each["subject"]) for each in found] == [
        ("key.revoke", "admin key"),
        ("key.create", "admin key"),
    ]
    table = llamactl(
        folder, "audit", "--action", "key.create", "--tenant", "acme", server=server, env=key(ADMIN)
    )
    assert re.search(r"admin key +127\.0\.0\.1 +key\.create +acme/[0-9a-f]{12} +bound_to=zoe", table.stdout)
    refused = llamactl(folder, "run", "repeat", "message=hi", server=server, env=key(own))
    assert refused.returncode == 1
    unknown = llamactl(folder, "keys", "revoke", "000000000000", server=server, env=key(ADMIN))
    assert unknown.returncode == 3


def test_the_printed_commands_work_when_pasted(folder: Path, tmp_path: Path) -> None:
    arguments = ("serve", "cli_app:repeat", *ANY_PORTS, "--auth", "keys", "--data-dir", str(tmp_path))
    with started(folder, *arguments, env={"CONTROL_PLANE_ADMIN_KEY": ADMIN}) as process:
        lines: list[str] = []
        while not lines or not lines[-1].startswith("Press Ctrl-C"):
            lines.append(process.line())
        assert any("LLAMA_DEPLOY_API_KEY" in line and line.startswith("callers") for line in lines)
        for line in lines:
            if not line.startswith(("llamactl ", "curl ", "python ")):
                continue
            words = line.replace("llamactl ", f"{sys.executable} -m llama_deploy.cli ", 1)
            words = words.replace("python -c", f"{sys.executable} -c", 1)
            done = subprocess.run(
                ["/bin/sh", "-c", words],
                cwd=folder,
                env={**environment(), **key(ADMIN)},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert "hello" in done.stdout, (line, done.stderr)


def test_the_first_key_is_created_in_the_store(folder: Path, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/data/control_plane.db"
    create = ("keys", "create", "--store", store, "--expires", "never", "--json", "--scope")
    first = json.loads(llamactl(folder, *create, "admin").stdout)
    assert first["expires_at"] is None
    assert first["created_by"].startswith("llamactl of ")
    arguments = ("serve", "cli_app:repeat", *ANY_PORTS, "--auth", "keys", "--json")
    with started(folder, *arguments, "--data-dir", str(tmp_path / "data")) as process:
        url = str(json.loads(process.line())["control_plane_url"])
        done = llamactl(folder, "run", "repeat", "message=hi", server=url, env=key(first["key"]))
        assert done.stdout.splitlines()[-1] == "hi", done.stderr
        locked = llamactl(folder, *create, "admin")
        assert locked.returncode == 1
        assert "-s URL" in json.loads(locked.stderr)["hint"]
        assert process.end(signal.SIGINT)[0] == 0
    listed = json.loads(llamactl(folder, "keys", "list", "--store", store, "--json").stdout)
    assert [each["key_id"] for each in listed["items"]] == [first["key_id"]]
    revoked = llamactl(folder, "keys", "revoke", first["key_id"], "--store", store, "--json")
    assert json.loads(revoked.stdout)["revoked_at"] is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--scope", "admin"],
        ["--expires", "1d"],
        ["--scope", "everything", "--expires", "1d"],
        ["--scope", "admin", "--expires", "soon"],
        ["--scope", "admin", "--expires", "0d"],
        ["--scope", "admin", "--expires", "1000000000000d"],
        ["--scope", "admin", "--expires", "1d", "--name", "x" * 201],
    ],
)
def test_a_malformed_key_is_wrong_usage(folder: Path, tmp_path: Path, arguments: list[str]) -> None:
    done = llamactl(folder, "keys", "create", "--store", f"sqlite:///{tmp_path}/state.db", *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
