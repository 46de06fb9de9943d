"""`llamactl inbox`, and `llamactl run` in a terminal that asks."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.llamactl import ANY_PORTS, LLAMACTL, PATIENCE, environment, llamactl, started

from llama_deploy import Client, SyncClient
from llama_deploy.errors import TaskFinishedError
from llama_deploy.testing.conditions import eventually

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inbox")
    shutil.copy(PROGRAMS / "asking_app.py", folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    with started(folder, "serve", "order=asking_app:Order", *ANY_PORTS, "--json") as serving:
        yield json.loads(serving.line())["control_plane_url"]


@pytest.fixture
def question_id(folder: Path, server: str) -> Iterator[str]:
    """A question of a new task, which is cancelled at the end."""
    question_id, task_id = asyncio.run(_ask(server))
    yield question_id
    with SyncClient(server) as client, suppress(TaskFinishedError):
        client.task(task_id).cancel()


async def _ask(server: str) -> tuple[str, str]:
    async with Client(server) as client:
        handle = await client.submit("order", item="tea")
        [question] = await eventually(handle.questions, seconds=PATIENCE)
        return question.question_id, handle.task_id


def test_questions_are_listed_shown_and_assigned(folder: Path, server: str, question_id: str) -> None:
    shown = llamactl(folder, "inbox", "show", question_id, server=server)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "  item: tea" in shown.stdout.splitlines()
    assert "Verdict(approved: boolean, count: integer = 1)" in shown.stdout
    assigned = llamactl(folder, "inbox", "assign", question_id, "bo", server=server)
    assert assigned.stdout == f"Question {question_id} is assigned to bo.\n"
    listed = llamactl(folder, "inbox", "list", "--assignee", "bo", server=server)
    header, row = listed.stdout.splitlines()
    assert header.split() == ["question", "service", "since"]
    assert re.match(rf'{question_id}  order +\d+ \w+  for bo  \[shop\]  {{"item": "tea"', row)
    page = json.loads(llamactl(folder, "inbox", "list", "--tag", "shop", "--json", server=server).stdout)
    assert question_id in [each["question_id"] for each in page["items"]]
    none = llamactl(folder, "inbox", "list", "--service", "other", server=server)
    assert (none.stdout, none.stderr) == ("", "There are no such questions that are open.\n")


def test_a_question_is_answered_once(folder: Path, server: str, question_id: str) -> None:
    wrong = llamactl(folder, "inbox", "answer", question_id, "approved=perhaps", server=server)
    assert wrong.returncode == 2
    assert "approved: expected true or false" in wrong.stderr
    nothing = llamactl(folder, "inbox", "answer", question_id, server=server)
    assert (nothing.returncode, "stdin is not a terminal" in nothing.stderr) == (2, True)
    answered = llamactl(folder, "inbox", "answer", question_id, "approved=true", server=server)
    assert re.fullmatch(rf"Answered question {question_id} of task \S+\.\n", answered.stdout)
    again = llamactl(folder, "inbox", "answer", question_id, "approved=false", server=server)
    assert (again.returncode, "was answered at" in again.stderr) == (1, True)
    without_fields = llamactl(folder, "inbox", "answer", question_id, server=server)
    assert (without_fields.returncode, "was answered at" in without_fields.stderr) == (1, True)
    assert "hint: list the questions that are open with `llamactl inbox list`" in again.stderr


def test_a_question_is_answered_from_a_file(folder: Path, server: str, question_id: str) -> None:
    (folder / "answer.json").write_text('{"approved": true, "count": 3}')
    done = llamactl(folder, "inbox", "answer", question_id, "@answer.json", "--json", server=server)
    assert json.loads(done.stdout)["state"] == "answered"


def test_a_refused_question_fails_its_task(folder: Path, server: str, question_id: str) -> None:
    done = llamactl(folder, "inbox", "refuse", question_id, "too dear", server=server)
    assert re.fullmatch(rf"Refused question {question_id}; task \S+ fails\.\n", done.stdout)
    shown = llamactl(folder, "inbox", "show", question_id, "--json", server=server)
    assert json.loads(shown.stdout)["reason"] == "too dear"


def test_a_callback_answers_the_question(folder: Path, server: str, question_id: str) -> None:
    url = llamactl(folder, "inbox", "callback", question_id, server=server).stdout.strip()
    assert url.startswith(f"{server}/callbacks/")
    sent = ["curl", "-fsS", "-H", "Content-Type: application/json", "-d", '{"approved": false}', url]
    done = subprocess.run(sent, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "answered"


def test_an_unknown_question_is_not_found(folder: Path, server: str) -> None:
    done = llamactl(folder, "inbox", "show", "ask-0", server=server)
    assert (done.returncode, "there is no question ask-0" in done.stderr) == (3, True)
    assert "hint: list the open questions with `llamactl inbox list`" in done.stderr


class Terminal:
    """A command in a terminal, with what a person types."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._own, terminal = pty.openpty()
        self._process = subprocess.Popen(
            [*LLAMACTL, *arguments],
            cwd=folder,
            env=environment(),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        self.printed = ""

    def expect(self, text: str) -> None:
        """Read until the text has come."""
        while text not in self.printed:
            try:
                chunk = os.read(self._own, 4096)
            except OSError:
                chunk = b""
            assert chunk, f"it has ended without {text!r}: {self.printed}"
            self.printed += chunk.decode().replace("\r\n", "\n")
        self.printed = self.printed.partition(text)[2]

    def enter(self, line: str) -> None:
        os.write(self._own, f"{line}\n".encode())

    def close(self) -> int:
        try:
            return self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            os.close(self._own)


def test_run_asks_in_the_terminal(folder: Path, server: str) -> None:
    terminal = Terminal(folder, "-s", server, "run", "order", "item=milk")
    terminal.expect("  item: milk\n")
    terminal.expect("approved (boolean): ")
    terminal.enter("perhaps")
    terminal.expect("write yes or no")
    terminal.expect("approved (boolean): ")
    terminal.enter("yes")
    terminal.expect("count (integer = 1): ")
    terminal.enter("7")
    terminal.expect("ordered 7 milk\n")
    assert terminal.close() == 0


def test_answer_shows_a_form_in_the_terminal(folder: Path, server: str, question_id: str) -> None:
    terminal = Terminal(folder, "-s", server, "inbox", "answer", question_id)
    terminal.expect("approved (boolean): ")
    terminal.enter("no")
    terminal.expect("count (integer = 1): ")
    terminal.enter("")
    terminal.expect("Answered question")
    assert terminal.close() == 0
    facts: dict[str, Any] = json.loads(
        llamactl(folder, "inbox", "show", question_id, "--json", server=server).stdout
    )
    assert facts["state"] == "answered"
