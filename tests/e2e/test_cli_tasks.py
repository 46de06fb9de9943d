"""`llamactl tasks`: find, show, follow and cancel tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.llamactl import llamactl, llamactl_in_terminal

from llama_deploy.client import SyncClient


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    with SyncClient(server) as opened:
        yield opened


@pytest.fixture(scope="module")
def ended(client: SyncClient) -> list[str]:
    """Five tasks that have succeeded, oldest first, and one that has failed."""
    ids = []
    for n in range(5):
        task = client.submit("repeat", message=f"m{n}", tags=["e2e", f"number:{n}"], task_id=f"done-{n}")
        task.result()
        ids.append(task.task_id)
    client.submit("repeat", message="boom", task_id="failed-0").info()
    return ids


def lines(folder: Path, server: str, *arguments: str, code: int = 0) -> list[str]:
    done = llamactl(folder, "tasks", *arguments, server=server)
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines()


def test_tasks_are_listed_in_columns(folder: Path, server: str, ended: list[str]) -> None:
    header, *rows = lines(folder, server, "list", "--tag", "e2e", "--status", "succeeded")
    assert header.split() == ["task", "service", "status", "since"]
    assert [row.split()[:3] for row in rows] == [[each, "repeat", "succeeded"] for each in reversed(ended)]
    assert len({row.index("succeeded") for row in rows}) == 1


def test_a_list_as_json_is_a_page(folder: Path, server: str, ended: list[str]) -> None:
    (line,) = lines(folder, server, "list", "--tag", "e2e", "--oldest", "--limit", "2", "--json")
    page = json.loads(line)
    assert [task["task_id"] for task in page["items"]] == ended[:2]
    (line,) = lines(
        folder, server, "list", "--tag", "e2e", "--oldest", "--cursor", page["next_cursor"], "--json"
    )
    rest = json.loads(line)
    assert [task["task_id"] for task in rest["items"]] == ended[2:]
    assert rest["next_cursor"] is None


def test_a_list_says_that_there_are_more(folder: Path, server: str, ended: list[str]) -> None:
    done = llamactl(folder, "tasks", "list", "--id", "done-", "--limit", "1", server=server)
    assert "There are more tasks" in done.stderr
    assert "--cursor" in done.stderr
    every = lines(folder, server, "list", "--id", "done-", "--all")
    assert [row.split()[0] for row in every[1:]] == ended


def test_rows_fit_into_a_terminal(folder: Path, server: str, ended: list[str]) -> None:
    printed = llamactl_in_terminal(folder, "-s", server, "tasks", "list", columns=80)
    assert max(map(len, printed.splitlines())) <= 80
    assert "done-4" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list", "--status", "done"), "status"),
        (("list", "--cursor", "page2"), "is not a cursor"),
        (("list", "--created-after", "yesterday"), "is not a time"),
        (("list", "--limit", "0"), "limit"),
        (("count", "--by", "color"), "use status, service"),
    ],
)
def test_bad_conditions_are_wrong_usage(
    folder: Path, server: str, arguments: tuple[str, ...], words: str
) -> None:
    done = llamactl(folder, "tasks", *arguments, server=server)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr


@pytest.mark.parametrize("command", ["show", "events", "wait", "cancel"])
def test_an_unknown_task_is_not_found(folder: Path, server: str, command: str) -> None:
    done = llamactl(folder, "tasks", command, "unknown", server=server)
    assert done.returncode == 3, done.stderr
    assert "there is no task unknown" in done.stderr


def test_a_task_is_shown(folder: Path, server: str, ended: list[str]) -> None:
    text = "\n".join(lines(folder, server, "show", ended[0]))
    for words in ("done-0", "succeeded", "repeat", "e2e, number:0", '{"message": "m0"}', "attempts"):
        assert words in text
    (line,) = lines(folder, server, "show", ended[0], "--json")
    assert json.loads(line)["attempts"][0]["end"] == "succeeded"


def test_tasks_are_counted(folder: Path, server: str, ended: list[str]) -> None:
    rows = [row.split() for row in lines(folder, server, "count")]
    counts = {(service, status): int(count) for service, status, count in rows}
    assert counts["repeat", "succeeded"] >= 5
    (line,) = lines(folder, server, "count", "--by", "status", "--json")
    assert any(each["status"] == "succeeded" and each["count"] >= 5 for each in json.loads(line))


def test_a_failed_task_tells_why(folder: Path, server: str, ended: list[str]) -> None:
    assert lines(folder, server, "wait", "failed-0", code=1) == []
    assert "ValueError: a bad message" in "\n".join(lines(folder, server, "list", "--status", "failed"))
    text = "\n".join(lines(folder, server, "show", "failed-0"))
    assert "builtins.ValueError: a bad message" in text
    assert "in repeat" in text


def test_a_task_is_awaited_and_its_events_are_printed(folder: Path, server: str, ended: list[str]) -> None:
    assert lines(folder, server, "wait", ended[1])
    *_, last = lines(folder, server, "events", ended[1], "--json")
    assert json.loads(last)["type"]


def test_a_running_task_is_cancelled(folder: Path, server: str, client: SyncClient) -> None:
    task = client.submit("sleep", seconds=60)
    (line,) = lines(folder, server, "cancel", task.task_id)
    assert line.startswith(f"Task {task.task_id} is ")
    assert lines(folder, server, "wait", task.task_id, code=1) == []
    assert client.tasks.get(task.task_id).status.value == "cancelled"
    done = llamactl(folder, "tasks", "cancel", "done-0", server=server)
    assert done.returncode == 1
    assert "has ended" in done.stderr
    assert "hint: see how it ended with `llamactl tasks show TASK`" in done.stderr
