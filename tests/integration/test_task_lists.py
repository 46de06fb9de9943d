"""Finding tasks without their ids: lists, counts and details, over HTTP and with the clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from llama_deploy.client import Client
from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.errors import (
    InvalidCursorError,
    InvalidRequestError,
    TaskFinishedError,
    TaskNotFoundError,
)
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.records import ServiceRecord, StepsRecord, TaskRecord
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.types import TaskStatus
from llama_deploy.types.step_history import StepEnd, encode_steps
from llama_deploy.types.task_lists import TaskFilter

FAILED = json.dumps(
    {
        "task_id": "x",
        "status": "failed",
        "result": "no",
        "error": {"type": "builtins.ValueError", "message": "no", "traceback": "line"},
    }
)


def some_tasks() -> list[TaskRecord]:
    """Return 60 tasks of two services, ten of which have failed; one a second."""
    tasks = []
    for n in range(60):
        status = TaskStatus.FAILED if n % 6 == 0 else TaskStatus.SUCCEEDED if n % 2 else TaskStatus.WAITING
        tasks.append(
            a_task(
                f"task-{n:02}",
                session_id=f"s{n % 4}",
                status=status,
                service_name="report" if n % 3 else "adder",
                created_at=NOW + timedelta(seconds=n),
                finished_at=NOW + timedelta(hours=1) if status.is_terminal else None,
                result=FAILED if status is TaskStatus.FAILED else None,
                tags=json.dumps([f"customer:{n % 10}", "nightly"] if n % 2 else []),
                parent_task_id="task-00" if 1 <= n <= 3 else None,
            )
        )
    return tasks


@pytest.fixture
def config(tmp_path: Path) -> ControlPlaneConfig:
    return ControlPlaneConfig(port=0, state_store_uri=f"sqlite:///{tmp_path}/state.db")


@pytest.fixture
async def store(config: ControlPlaneConfig) -> AsyncIterator[StateStore]:
    async with await open_state_store(config.store_uri) as opened:
        await opened.transact(lambda tx: tx.sessions.insert([a_session(f"s{n}") for n in range(4)]))
        await opened.transact(lambda tx: tx.tasks.insert(some_tasks()))
        services = [ServiceRecord(name, json.dumps({"service_name": name})) for name in ("report", "adder")]
        await opened.transact(lambda tx: tx.services.put(services))
        yield opened


@pytest.fixture
async def server(store: StateStore, config: ControlPlaneConfig) -> AsyncIterator[ControlPlaneServer]:
    async with (
        await LocalMessageQueue.start() as queue,
        ControlPlaneServer(queue, state_store=store, config=config) as started,
    ):
        yield started


@pytest.fixture
async def client(server: ControlPlaneServer) -> AsyncIterator[Client]:
    async with Client(server.config.url, timeout=20) as opened:
        yield opened


@pytest.fixture
async def http(server: ControlPlaneServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.config.url) as opened:
        yield opened


def ids(items: Sequence[Any]) -> list[str]:
    return [task["task_id"] if isinstance(task, dict) else task.task_id for task in items]


# -- lists


async def test_the_newest_tasks_come_first_in_pages(client: Client) -> None:
    first = await client.tasks.list(limit=20)
    assert ids(first.items) == [f"task-{n:02}" for n in range(59, 39, -1)]
    assert first.next_cursor is not None
    second = await client.tasks.list(limit=20, cursor=first.next_cursor)
    assert ids(second.items) == [f"task-{n:02}" for n in range(39, 19, -1)]
    everything = [task.task_id async for task in client.tasks.all(TaskFilter(order="oldest"), page_size=7)]
    assert everything == [f"task-{n:02}" for n in range(60)]


async def test_conditions_are_combined(client: Client) -> None:
    failed = await client.tasks.list(status="failed", service="adder", order="oldest")
    assert ids(failed.items) == [f"task-{n:02}" for n in range(0, 60, 6)]
    assert failed.next_cursor is None
    assert failed.items[0].error is not None
    assert failed.items[0].error.type == "builtins.ValueError"
    tagged = await client.tasks.list(tag=["nightly", "customer:7"], status=["succeeded", "failed"])
    assert ids(tagged.items) == ["task-57", "task-47", "task-37", "task-27", "task-17", "task-07"]
    between = await client.tasks.list(
        created_after=NOW + timedelta(seconds=5), created_before=NOW + timedelta(seconds=8)
    )
    assert ids(between.items) == ["task-07", "task-06", "task-05"]
    assert ids((await client.tasks.list(session="s1", parent="task-00")).items) == ["task-01"]
    assert ids((await client.tasks.list(q="task-1", status="waiting")).items) == [
        f"task-{n}" for n in (10, 14, 16)
    ]
    assert (await client.tasks.list(service="unknown")).items == []


async def test_the_client_without_await_lists_too(client: Client) -> None:
    page = await asyncio.to_thread(client.sync.tasks.list, status="failed", limit=3)
    assert ids(page.items) == ["task-54", "task-48", "task-42"]

    def read_all() -> list[str]:
        return ids([*client.sync.tasks.all(TaskFilter(q="task-0"), page_size=3)])

    assert await asyncio.to_thread(read_all) == [f"task-0{n}" for n in range(10)]


async def test_a_page_names_the_next_one_in_a_link(http: httpx.AsyncClient) -> None:
    found: list[str] = []
    path = "/tasks?status=waiting&status=failed&limit=9"
    while path:
        answer = await http.get(path)
        assert answer.status_code == 200
        found += ids(answer.json()["items"])
        path = str(answer.links.get("next", {}).get("url", ""))
    assert len(found) == len(set(found)) == 30
    assert found == sorted(found, reverse=True)


async def test_a_list_leaves_out_what_may_be_large(http: httpx.AsyncClient) -> None:
    answer = (await http.get("/tasks", params={"limit": 1})).json()
    (task,) = answer["items"]
    assert not task.keys() & {"arguments", "steps", "attempts", "children", "result"}
    assert task["since"] == "2026-02-03T04:05:06.789012Z"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("state=failed", "unknown query parameter 'state'; known: status, service, session, tag"),
        ("status=done", "status"),
        ("limit=0", "greater than or equal to 1"),
        ("limit=1001", "less than or equal to 1000"),
        ("limit=many", "limit"),
        ("created_after=yesterday", "created_after"),
        ("created_after=2026-01-01T00:00:00", "its offset from UTC"),
        ("created_before=-2.00001", "created_before: Input should be a date and a time"),
        ("order=random", "order"),
        ("q=a&order=newest", "tasks are listed by id"),
        ("tag=" + "x" * 101, "tag"),
        ("session=", "session"),
    ],
)
async def test_bad_conditions_are_refused(http: httpx.AsyncClient, query: str, words: str) -> None:
    answer = await http.get(f"/tasks?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:llama-deploy:problem:invalid_request"
    assert words in answer.json()["detail"]


async def test_a_cursor_of_another_filter_is_refused(client: Client) -> None:
    page = await client.tasks.list(status="failed", limit=2)
    with pytest.raises(InvalidCursorError, match="another filter or order"):
        await client.tasks.list(status="succeeded", limit=2, cursor=page.next_cursor)
    with pytest.raises(InvalidCursorError, match="another filter or order"):
        await client.tasks.list(status="failed", order="oldest", cursor=page.next_cursor)
    with pytest.raises(InvalidCursorError, match="is not a cursor"):
        await client.tasks.list(status="failed", cursor="page 2")
    by_id = await client.tasks.list(q="task", limit=1)
    with pytest.raises(InvalidCursorError):
        await client.tasks.list(q="task-", limit=1, cursor=by_id.next_cursor)
    # Another number of tasks a page is no other list.
    assert ids((await client.tasks.list(status="failed", limit=1, cursor=page.next_cursor)).items) == [
        "task-42"
    ]


async def test_the_client_refuses_a_bad_filter_before_it_sends_it(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="status"):
        await client.tasks.list(status="done")


# -- counts


async def test_tasks_are_counted_by_status_and_service(client: Client, http: httpx.AsyncClient) -> None:
    counts = {(each.service, each.status): each.count for each in await client.tasks.count()}
    assert counts == {
        ("adder", TaskStatus.FAILED): 10,
        ("adder", TaskStatus.SUCCEEDED): 10,
        ("report", TaskStatus.SUCCEEDED): 20,
        ("report", TaskStatus.WAITING): 20,
    }
    by_status = (await http.get("/tasks/count?by=status")).json()
    assert by_status == {
        "items": [
            {"status": "waiting", "count": 20},
            {"status": "succeeded", "count": 30},
            {"status": "failed", "count": 10},
        ]
    }
    assert (await http.get("/tasks/count?by=")).json() == {"items": [{"count": 60}]}
    assert [each.count for each in await client.tasks.count(["service"])] == [20, 40]


async def test_counts_follow_what_happens(client: Client) -> None:
    task = await client.submit("adder", a=1)
    await client.tasks.cancel(task.task_id)
    counts = {(each.service, each.status): each.count for each in await client.tasks.count()}
    assert counts["adder", TaskStatus.CANCELLED] == 1
    assert ("adder", TaskStatus.QUEUED) not in counts


@pytest.mark.parametrize("query", ["by=session", "by=status,color", "of=status"])
async def test_tasks_are_not_counted_by_anything(http: httpx.AsyncClient, query: str) -> None:
    answer = await http.get(f"/tasks/count?{query}")
    assert answer.status_code == 422
    assert "known: " in answer.json()["detail"]


# -- one task


async def test_the_details_of_a_task_tell_all_that_is_known(client: Client, store: StateStore) -> None:
    steps = encode_steps([StepEnd("read", 1_700_000_000_000, 250, 2)])
    await store.transact(lambda tx: tx.steps.put([StepsRecord("task-00", 3, 0, steps)]))
    task = await client.tasks.get("task-00")
    assert task.status is TaskStatus.FAILED
    assert task.arguments == {"name": "Zoë"}
    assert task.error is not None
    assert (task.error.message, task.error.traceback) == ("no", "line")
    assert task.children == ["task-01", "task-02", "task-03"]
    assert task.steps is not None
    (step,) = task.steps
    assert (step.step, step.attempt, step.events, step.error) == ("read", 3, 2, None)
    assert (step.ended_at - step.began_at).total_seconds() == 0.25
    assert task.waits_for is None
    child = await client.tasks.get("task-02")
    assert (child.parent_task_id, child.tags, child.waits_for) == ("task-00", [], "an event")
    with pytest.raises(TaskNotFoundError):
        await client.tasks.get("unknown")


async def test_who_waits_for_the_end_gets_no_details(http: httpx.AsyncClient) -> None:
    short = (await http.get("/tasks/task-00?wait=0.01")).json()
    whole = (await http.get("/tasks/task-00")).json()
    assert short.keys() < whole.keys()
    assert short.items() <= whole.items()


async def test_a_task_without_an_instance_says_that_it_waits_for_one(client: Client) -> None:
    task = await client.submit("adder", a=1, tags=["customer:17", "customer:17"])
    details = await client.tasks.get(task.task_id)
    assert details.status is TaskStatus.QUEUED
    assert details.waits_for == "an instance of service 'adder', of which none is alive"
    assert details.tags == ["customer:17"]
    assert details.attempts == []
    assert ids((await client.tasks.list(tag="customer:17")).items) == [task.task_id]
    second = await client.submit("adder", session=details.session_id, a=2)
    waiting = await client.tasks.get(second.task_id)
    assert waiting.waits_for == f"its turn: earlier tasks of session {details.session_id}"


async def test_the_steps_of_a_task_come_in_pages(client: Client, store: StateStore) -> None:
    rows = [
        StepsRecord("task-01", 1, 2 * n, encode_steps([StepEnd(f"{each}{n}", 0, 0, 0) for each in "ab"]))
        for n in range(5)
    ]
    await store.transact(lambda tx: tx.steps.put(rows))
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await client.tasks.steps("task-01", limit=3, cursor=cursor)
        found += [each.step for each in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        last = cursor
    assert found == [f"{letter}{n}" for n in range(5) for letter in "ab"]
    with pytest.raises(InvalidCursorError):
        await client.tasks.steps("task-02", cursor=last)
    with pytest.raises(TaskNotFoundError):
        await client.tasks.steps("unknown")


# -- tags and ids of new tasks


@pytest.mark.parametrize("task_id", ["count", "bulk", "import"])
async def test_ids_that_are_paths_are_reserved(client: Client, task_id: str) -> None:
    with pytest.raises(InvalidRequestError, match="reserved"):
        await client.submit("adder", task_id=task_id)


@pytest.mark.parametrize("tags", [[""], ["a\nb"], ["x" * 101], [f"t{n}" for n in range(21)], "nightly"])
async def test_bad_tags_are_refused(client: Client, tags: Any) -> None:
    with pytest.raises(InvalidRequestError, match="tags"):
        await client.submit("adder", tags=tags)


async def test_a_task_that_has_ended_is_not_cancelled(client: Client) -> None:
    with pytest.raises(TaskFinishedError):
        await client.tasks.cancel("task-00")
    with pytest.raises(TaskNotFoundError):
        await client.tasks.cancel("unknown")
