"""Many tasks that are cancelled or retried at once, in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from llama_deploy.control_plane import ControlPlaneServer
from llama_deploy.errors import InvalidCursorError, InvalidRequestError
from llama_deploy.state_stores.base import StateStore
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.types import Durability, SessionPolicy, TaskResult, TaskStatus
from llama_deploy.web.http_connection import HttpConnection
from tests.integration.conftest import Instance, get, post, submit

pytestmark = pytest.mark.usefixtures("instance")


async def store_ended(
    store: StateStore,
    count: int,
    status: TaskStatus = TaskStatus.FAILED,
    *,
    prefix: str = "t",
    **changes: Any,
) -> list[str]:
    """Store tasks that have ended, each in a session of its own."""
    ids = [f"{prefix}{number:04}" for number in range(count)]
    tasks = [
        a_task(
            task_id,
            session_id=f"session of {task_id}",
            service_name="echo",
            status=status,
            finished_at=NOW,
            result=TaskResult(task_id=task_id, status=status).model_dump_json(),
            **changes,
        )
        for task_id in ids
    ]
    sessions = [a_session(task.session_id) for task in tasks]
    await store.transact(lambda tx: (tx.sessions.insert(sessions), tx.tasks.insert(tasks)))
    return ids


async def bulk(http: HttpConnection, action: str, **fields: Any) -> Any:
    return await post(http, "/tasks/bulk", {"action": action, "dry_run": False, **fields})


async def all_batches(http: HttpConnection, action: str, **fields: Any) -> list[Any]:
    batches = [await bulk(http, action, **fields)]
    while batches[-1]["next_cursor"] is not None:
        rest = {name: value for name, value in fields.items() if name != "bulk_id"}
        batches.append(await bulk(http, action, **rest, cursor=batches[-1]["next_cursor"]))
    return batches


def total(batches: Sequence[Any], name: str = "changed") -> int:
    return sum(batch[name] for batch in batches)


async def retries_of(store: StateStore, ids: Sequence[str]) -> list[str]:
    found = await store.read(lambda tx: tx.tasks.retries_of(ids))
    return [task_id for each in found.values() for task_id in each]


async def test_a_dry_run_tells_how_many_and_which(http: HttpConnection, store: StateStore) -> None:
    await store_ended(store, 1203)
    await store_ended(store, 3, TaskStatus.CANCELLED, prefix="c")
    await store_ended(store, 2, prefix="v", durability=Durability.VOLATILE)
    told = await post(http, "/tasks/bulk", {"action": "retry", "filter": {"service": "echo"}})
    assert (told["matched"], told["changed"], told["skipped"]) == (1205, 1203, 2)
    assert len(told["items"]) == 20
    assert told["next_cursor"] is None
    # The newest come first.
    assert [item["task_id"] for item in told["items"][:3]] == ["v0001", "v0000", "t1202"]
    assert "durability" in told["items"][0]["reason"]
    assert await retries_of(store, ["t1202", "v0001"]) == []


async def test_all_that_failed_are_retried_each_once(http: HttpConnection, store: StateStore) -> None:
    ids = await store_ended(store, 230)
    await store_ended(store, 2, TaskStatus.SUCCEEDED, prefix="s")
    batches = await all_batches(http, "retry", filter={"service": "echo"})
    assert [batch["matched"] for batch in batches] == [100, 100, 30]
    assert total(batches) == len(await retries_of(store, ids)) == 230
    again = await all_batches(http, "retry", filter={"service": "echo"})
    assert (total(again), total(again, "skipped")) == (0, 230)
    assert "was retried before, as task retry-" in again[0]["items"][0]["reason"]


async def test_a_batch_that_is_repeated_makes_no_second_retry(
    http: HttpConnection, store: StateStore
) -> None:
    ids = await store_ended(store, 12)
    options = {"filter": {"status": ["failed"]}, "limit": 5}
    first = [await bulk(http, "retry", **options, bulk_id="tonight") for _ in range(3)]
    assert first[1]["items"] == first[2]["items"] == first[0]["items"]
    second = [await bulk(http, "retry", **options, cursor=first[0]["next_cursor"]) for _ in range(3)]
    assert {batch["changed"] for batch in (*first, *second)} == {5}
    assert len(await retries_of(store, ids)) == 10


async def test_two_clients_at_once_retry_each_task_once(http: HttpConnection, store: StateStore) -> None:
    ids = await store_ended(store, 60)
    options = {"filter": {"service": "echo"}, "limit": 7}
    both = await asyncio.gather(*(all_batches(http, "retry", **options) for _ in range(2)))
    assert sum(map(total, both)) == len(await retries_of(store, ids)) == 60


async def test_retries_of_a_bulk_change_do_not_belong_to_it(
    http: HttpConnection, store: StateStore, server: ControlPlaneServer, instance: Instance
) -> None:
    """They may end before the change does; the oldest first, they would come last."""
    ids = await store_ended(store, 4)
    options = {"filter": {"service": "echo", "order": "oldest"}, "limit": 2}
    batch = await bulk(http, "retry", **options)
    for _ in range(2):
        await instance.run_one(status="failed", result=None, value=None)
    while (await get(http, f"/tasks/{batch['items'][-1]['new_task_id']}", wait=10))["status"] != "failed":
        pass
    rest = await bulk(http, "retry", **options, cursor=batch["next_cursor"])
    assert [item["task_id"] for item in (*batch["items"], *rest["items"])] == ids
    assert rest["next_cursor"] is None


async def test_open_tasks_are_cancelled_each_once(http: HttpConnection, store: StateStore) -> None:
    for number in range(9):
        await submit(http, task_id=f"t{number}", arguments={})
    await store_ended(store, 2, prefix="e")
    options = {"filter": {"service": "echo"}, "limit": 2}
    both = await asyncio.gather(*(all_batches(http, "cancel", **options) for _ in range(2)))
    assert sum(map(total, both)) == 9
    tasks = await store.read(lambda tx: tx.tasks.load([f"t{number}" for number in range(9)]))
    assert {task.status for task in tasks.values()} == {TaskStatus.CANCELLED}


async def test_a_running_task_is_asked_to_stop_once(http: HttpConnection, instance: Instance) -> None:
    await submit(http, task_id="t")
    await instance.claim(await instance.next_dispatch())
    (first,), (second,) = [await all_batches(http, "cancel", filter={"q": "t"}) for _ in range(2)]
    assert (first["changed"], second["changed"], second["skipped"]) == (1, 0, 1)
    assert "requested before" in second["items"][0]["reason"]


async def test_an_ended_task_of_the_filter_is_skipped(http: HttpConnection, store: StateStore) -> None:
    await store_ended(store, 1)
    answer = await bulk(http, "cancel", filter={"status": ["failed"]})
    assert (answer["matched"], answer["changed"]) == (1, 0)
    assert answer["items"][0]["reason"] == "it has ended: failed"


async def test_what_cannot_be_retried_is_skipped_with_the_reason(
    http: HttpConnection, store: StateStore
) -> None:
    await store_ended(store, 1, TaskStatus.SUCCEEDED)
    session = a_session("busy")._replace(policy=SessionPolicy.REJECT)
    busy = a_task("b", session_id="busy", service_name="echo", status=TaskStatus.FAILED, finished_at=NOW)
    await store.transact(lambda tx: (tx.sessions.insert([session]), tx.tasks.insert([busy])))
    await submit(http, session_id="busy", task_id="open")
    answer = await bulk(http, "retry", filter={"status": ["failed", "succeeded", "queued"]})
    reasons = {item["task_id"]: item["reason"] for item in answer["items"]}
    assert "has succeeded" in reasons["t0000"]
    assert "policy rejects" in reasons["b"]
    assert "has not ended" in reasons["open"]
    assert answer["skipped"] == 3
    from_start = await bulk(http, "retry", filter={"status": ["succeeded"]}, **{"from": "start"})
    assert from_start["changed"] == 1


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "no condition"),
        ({"filter": {"order": "oldest"}}, "no condition"),
        ({"filter": {"services": "echo"}}, "services"),
        ({"filter": {"status": ["ended"]}}, "status"),
        ({"filter": {"service": "echo"}, "limit": 0}, "limit"),
        ({"filter": {"service": "echo"}, "limit": 501}, "limit"),
        ({"filter": {"service": "echo"}, "from": "second"}, "from"),
        ({"filter": {"service": "echo"}, "filters": {}}, "filters"),
        ({"filter": {"service": "echo"}, "action": "delete"}, "action"),
    ],
)
async def test_a_change_that_is_not_clear_is_refused(
    http: HttpConnection, store: StateStore, fields: dict[str, Any], problem: str
) -> None:
    ids = await store_ended(store, 1)
    with pytest.raises(InvalidRequestError, match=problem):
        await post(http, "/tasks/bulk", {"action": "retry", "dry_run": False, **fields})
    assert await retries_of(store, ids) == []


async def test_all_tasks_have_to_be_named(http: HttpConnection, store: StateStore) -> None:
    await store_ended(store, 3)
    assert (await bulk(http, "retry", all=True))["changed"] == 3


async def test_a_cursor_belongs_to_its_change(http: HttpConnection, store: StateStore) -> None:
    await store_ended(store, 3)
    cursor = (await bulk(http, "retry", filter={"service": "echo"}, limit=1))["next_cursor"]
    for action, fields in (
        ("retry", {"filter": {"service": "other"}}),
        ("retry", {"filter": {"service": "echo"}, "from": "start"}),
        ("cancel", {"filter": {"service": "echo"}}),
    ):
        with pytest.raises(InvalidCursorError):
            await bulk(http, action, **fields, cursor=cursor)
    with pytest.raises(InvalidRequestError, match="bulk_id"):
        await bulk(http, "retry", filter={"service": "echo"}, cursor=cursor, bulk_id="other")
    assert (await bulk(http, "retry", filter={"service": "echo"}, cursor=cursor))["changed"] == 2


async def test_by_the_beginning_of_their_ids(http: HttpConnection, store: StateStore) -> None:
    ids = await store_ended(store, 5)
    await store_ended(store, 1, prefix="u")
    batches = await all_batches(http, "retry", filter={"q": "t"}, limit=2)
    assert [item["task_id"] for batch in batches for item in batch["items"]] == ids
    assert total(batches) == 5
