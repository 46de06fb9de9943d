"""The versions of services, and the tasks that not every version can run."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

from datetime import timedelta
from typing import Any

from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import (
    SUSPECT_DEATHS,
    RunGroupRecord,
    RunHeadRecord,
    RunNeedsRecord,
    ServiceRecord,
    TaskRecord,
    VersionRecord,
)
from llama_deploy.testing.records import NOW, a_task, an_instance
from llama_deploy.testing.state_store_suite.base import StoreTests
from llama_deploy.types import TaskStatus

QUEUED, WAITING = TaskStatus.QUEUED, TaskStatus.WAITING


class VersionTests(StoreTests):
    """A store keeps versions, and finds the tasks that need certain ones."""

    async def test_versions_are_put_over_those_of_the_same_key(self, store: StateStore) -> None:
        first = [VersionRecord("greeter", "v2", "{}"), VersionRecord("greeter", "v1", "{}")]
        await store.transact(
            lambda tx: tx.services.put_versions([*first, VersionRecord("other", "v1", "{}")])
        )
        await store.transact(
            lambda tx: tx.services.put_versions([VersionRecord("greeter", "v1", '{"a": 1}')])
        )
        assert await store.read(lambda tx: tx.services.load_versions(["greeter", "unknown"])) == [
            VersionRecord("greeter", "v1", '{"a": 1}'),
            VersionRecord("greeter", "v2", "{}"),
        ]

    async def test_versions_without_an_instance_are_unused(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            keys = [("greeter", "v1"), ("greeter", "v2"), ("other", "v1")]
            tx.services.put_versions([VersionRecord(*key, "{}") for key in keys])
            tx.instances.put([an_instance("i1")._replace(version="v2")])
            tx.instances.put([an_instance("i2", service_name="other")])
            tx.services.delete_unused_versions(["greeter"])

        await store.transact(work)
        left = await store.read(lambda tx: tx.services.load_versions(["greeter", "other"]))
        assert [each[:2] for each in left] == [("greeter", "v2"), ("other", "v1")]

    async def test_deleting_a_service_deletes_its_versions(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.services.put([ServiceRecord("greeter", "{}")])
            tx.services.put_versions(
                [VersionRecord("greeter", "v1", "{}"), VersionRecord("other", "v1", "{}")]
            )
            tx.services.delete(["greeter"])

        await store.transact(work)
        left = await store.read(lambda tx: tx.services.load_versions(["greeter", "other"]))
        assert [each.service_name for each in left] == ["other"]

    async def test_a_look_at_instances_shows_those_of_services(self, store: StateStore) -> None:
        records = [
            an_instance("i2"),
            an_instance("i1")._replace(version="v1"),
            an_instance("i3", service_name="o"),
        ]
        await store.transact(lambda tx: tx.instances.put(records))
        assert await store.read(lambda tx: tx.instances.look(["greeter"])) == [records[1], records[0]]

    async def test_what_runs_need_is_kept_until_it_changes(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.runs.put([RunHeadRecord("t1", "f", "1", needs='{"a": 1}')]))
        await store.transact(lambda tx: tx.runs.put([RunHeadRecord("t1", "f", "1", "snapshot")]))
        await store.transact(lambda tx: tx.runs.put([RunHeadRecord("t2", "g", "1")]))
        assert await store.read(lambda tx: tx.runs.load_needs(["t1", "t2", "unknown"])) == {
            "t1": RunNeedsRecord("f", '{"a": 1}'),
            "t2": RunNeedsRecord("g", None),
        }

    async def test_queued_tasks_are_held_that_have_a_run_or_are_pinned(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert(
                [
                    a_task("late", status=QUEUED, has_run=True, redispatch_at=NOW + timedelta(seconds=1)),
                    a_task("fresh", status=QUEUED),
                    a_task("pinned", status=QUEUED, pinned_to="v1", redispatch_at=NOW),
                    a_task("waiting", status=WAITING, has_run=True),
                    a_task("elsewhere", status=QUEUED, has_run=True, routed_to="other"),
                ]
            )

        await store.transact(work)

        async def held(*names: str, limit: int = 9) -> list[str]:
            found = await store.read(lambda tx: tx.tasks.held(names, limit=limit))
            return [task.task_id for task in found]

        assert await held("greeter") == ["pinned", "late"]
        assert await held("greeter", limit=1) == ["pinned"]
        assert await held("other") == ["elsewhere"]
        assert await held() == []

    async def test_tasks_that_need_the_same_are_counted_together(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert(
                [
                    a_task("t1", status=WAITING, has_run=True, version="v1"),
                    a_task("t2", status=QUEUED, has_run=True, version="v1"),
                    a_task("t3", status=WAITING, has_run=True, version="v1"),
                    a_task("t4", status=QUEUED, pinned_to="v2"),
                    a_task("t5", status=QUEUED),
                    a_task("t6", status=TaskStatus.RUNNING, has_run=True),
                    a_task("t7", status=WAITING, has_run=True, routed_to="other"),
                ]
            )
            heads = [RunHeadRecord(task_id, "f", "1", needs="{}") for task_id in ("t1", "t2", "t7")]
            tx.runs.put([*heads, RunHeadRecord("t3", "g", "1")])

        await store.transact(work)
        assert sorted(await store.read(lambda tx: tx.runs.groups(["greeter"], living=[])), key=str) == sorted(
            [
                RunGroupRecord("greeter", "v1", None, "f", "{}", 2),
                RunGroupRecord("greeter", "v1", None, "g", None, 1),
                RunGroupRecord("greeter", None, "v2", None, None, 1),
            ],
            key=str,
        )
        both = await store.read(lambda tx: tx.runs.groups(["greeter", "other"], living=[]))
        assert sum(group.task_count for group in both) == 5
        living = [("greeter", "v1"), ("other", "v9"), ("greeter", "v2")]
        rest = await store.read(lambda tx: tx.runs.groups(["greeter", "other"], living=living))
        assert sorted((group.service_name, group.pinned_to) for group in rest) == [
            ("greeter", "v2"),
            ("other", None),
        ]

    async def test_suspects_that_need_the_same_are_counted_together(self, store: StateStore) -> None:
        def suspect(task_id: str, **changes: Any) -> TaskRecord:
            fields = {"status": QUEUED, "deaths": SUSPECT_DEATHS, "dispatches": 1, "version": "v1", **changes}
            return a_task(task_id, **fields)

        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert(
                [
                    suspect("t1", has_run=True),
                    suspect("t2", has_run=True),
                    suspect("t3", pinned_to="v2"),
                    suspect("t4"),
                    suspect("t5", has_run=True, dispatches=0),
                    suspect("t6", has_run=True, deaths=SUSPECT_DEATHS - 1),
                    suspect("t7", has_run=True, status=WAITING),
                    suspect("t8", has_run=True, routed_to="other"),
                ]
            )
            tx.runs.put([RunHeadRecord(f"t{n}", "f", "1", needs="{}") for n in (1, 2, 5, 6, 7, 8)])

        await store.transact(work)
        same = RunGroupRecord("greeter", "v1", None, "f", "{}", 2)
        pinned = RunGroupRecord("greeter", "v1", "v2", None, None, 1)
        found = await store.read(lambda tx: tx.runs.suspects(["greeter"], living=[]))
        assert sorted(found, key=str) == sorted([same, pinned], key=str)
        some = await store.read(lambda tx: tx.runs.suspects(["greeter"], living=[], limit=2))
        assert sum(group.task_count for group in some) == 2
        living = [("greeter", "v1")]
        both = await store.read(lambda tx: tx.runs.suspects(["greeter", "other"], living=living))
        assert {group.service_name: group.pinned_to for group in both} == {"greeter": "v2", "other": None}
