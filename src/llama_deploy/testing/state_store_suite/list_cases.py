"""Lists and counts of tasks, their tags, and the steps that have ended."""

# A test's name says what it shows. Nothing here is secret.
# ruff: noqa: D102, S311

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.list_repositories import MAX_SCAN, ListedTask, ListKey, TaskConditions
from llama_deploy.state_stores.records import StepsRecord, TaskRecord
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.testing.state_store_suite.base import StoreTests
from llama_deploy.types import TaskStatus

_SEED: Final = 20
_TAGS: Final = ("red", "green", "blue", "ünï")
_OPEN: Final = [status for status in TaskStatus if not status.is_terminal]


def _random_tasks(chance: random.Random, count: int) -> Iterator[TaskRecord]:
    """Yield tasks of which several are created at the same time."""
    for number in range(count):
        status = chance.choice([*TaskStatus])
        parent = f"{chance.randrange(16):x}-parent" if chance.random() < 0.3 else None
        task_id = f"{chance.choice(['a', 'ab', 'abc', 'B', 'ü', '_'])}{number:03}"
        yield a_task(
            task_id,
            session_id=f"s{chance.randrange(3)}",
            status=status,
            service_name=chance.choice(["greeter", "adder", "rare"]),
            created_at=NOW + timedelta(seconds=chance.randrange(40)),
            finished_at=NOW if status.is_terminal else None,
            parent_task_id=parent,
            tags=json.dumps(chance.sample(_TAGS, chance.randrange(4))),
        )


def _random_conditions(chance: random.Random) -> TaskConditions:
    def maybe(value: Callable[[], object]) -> object:
        return value() if chance.random() < 0.3 else None

    def some_time() -> object:
        return NOW + timedelta(seconds=chance.randrange(40))

    conditions = TaskConditions(
        statuses=frozenset(chance.sample([*TaskStatus], chance.choice([0, 0, 1, 2, 4, 8]))),
        tags=chance.sample(_TAGS, chance.choice([0, 0, 0, 1, 2])),
    )
    changes = {
        "service_name": maybe(lambda: chance.choice(["greeter", "adder", "rare", "unknown"])),
        "session_id": maybe(lambda: f"s{chance.randrange(4)}"),
        "parent_task_id": maybe(lambda: f"{chance.randrange(16):x}-parent"),
        "created_from": maybe(some_time),
        "created_before": maybe(some_time),
    }
    return replace(conditions, **changes)  # type: ignore[arg-type]


def _fulfils(task: TaskRecord, wanted: TaskConditions) -> bool:
    return (
        (not wanted.statuses or task.status in wanted.statuses)
        and wanted.service_name in (None, task.service_name)
        and wanted.session_id in (None, task.session_id)
        and wanted.parent_task_id in (None, task.parent_task_id)
        and set(wanted.tags) <= set(json.loads(task.tags))
        and (wanted.created_from is None or task.created_at >= wanted.created_from)
        and (wanted.created_before is None or task.created_at < wanted.created_before)
        and task.task_id.startswith(wanted.prefix or "")
    )


def _ids(tasks: Sequence[ListedTask]) -> list[str]:
    return [task.task_id for task in tasks]


async def _all_pages(
    store: StateStore, conditions: TaskConditions, *, newest_first: bool, limit: int
) -> list[str]:
    found: list[str] = []
    after: ListKey | None = None
    while True:
        page = await store.read(
            lambda tx, after=after: tx.task_lists.page(  # type: ignore[misc]
                conditions, newest_first=newest_first, after=after, limit=limit
            )
        )
        assert len(page.tasks) <= limit
        found += _ids(page.tasks)
        if page.last is None:
            return found
        after = page.last


class ListTests(StoreTests):
    """A store lists and counts tasks."""

    async def test_pages_have_the_tasks_that_fulfil_all_conditions_in_order(self, store: StateStore) -> None:
        chance = random.Random(_SEED)
        tasks = list(_random_tasks(chance, 400))
        await store.transact(lambda tx: tx.tasks.insert(tasks))
        for _ in range(60):
            wanted, newest_first = _random_conditions(chance), chance.random() < 0.5
            expected = [task for task in tasks if _fulfils(task, wanted)]
            expected.sort(key=lambda task: task.created_at)  # those of the same time stay in order
            names = [task.task_id for task in expected]
            if newest_first:
                names.reverse()
            limit = chance.choice([1, 7, 100]) if len(names) < 50 else 50
            assert await _all_pages(store, wanted, newest_first=newest_first, limit=limit) == names, wanted

    async def test_tasks_are_found_by_the_beginning_of_their_id(self, store: StateStore) -> None:
        chance = random.Random(_SEED)
        tasks = list(_random_tasks(chance, 200))
        await store.transact(lambda tx: tx.tasks.insert(tasks))
        for prefix in ("a", "ab", "abc", "abc1", "B", "ü", "_", "z", "", "\ue000"):
            for others in (TaskConditions(), _random_conditions(chance)):
                wanted = replace(others, prefix=prefix)
                found: list[str] = []
                after: str | None = ""
                while after is not None:
                    page = await store.read(
                        lambda tx, after=after, wanted=wanted: tx.task_lists.page_by_id(  # type: ignore[misc]
                            wanted, after=after, limit=9
                        )
                    )
                    found += _ids(page.tasks)
                    after = page.last
                assert found == sorted(task.task_id for task in tasks if _fulfils(task, wanted)), wanted

    async def test_a_listed_task_has_the_fields_of_its_record(self, store: StateStore) -> None:
        task = a_task("t1", status=TaskStatus.FAILED, finished_at=NOW, result='{"result": "no"}')
        task = task._replace(tags='["red"]', progress="half", routed_to="adder", retry_of="t0")
        done = task._replace(task_id="t2", status=TaskStatus.SUCCEEDED)
        large = task._replace(task_id="t3", result='"' + "x" * 20_000 + '"')
        await store.transact(lambda tx: tx.tasks.insert([task, done, large]))
        page = await store.read(lambda tx: tx.task_lists.page(TaskConditions(), newest_first=False))
        shown = {**task._asdict(), "failed_result": task.result}
        first, second, third = page.tasks
        assert first._replace(position=0)._asdict() == {
            name: 0 if name == "position" else shown[name] for name in ListedTask._fields
        }
        assert (second.failed_result, third.failed_result) == (None, None)
        assert page.last is None
        assert first.target == "adder"

    async def test_a_page_ends_after_so_many_tasks_that_do_not_fulfil_a_condition(
        self, store: StateStore
    ) -> None:
        tasks = [a_task(f"t{n:05}", status=TaskStatus.WAITING) for n in range(MAX_SCAN + 200)]
        tasks[0] = tasks[0]._replace(service_name="rare")
        await store.transact(lambda tx: tx.tasks.insert(tasks))
        wanted = TaskConditions(service_name="rare")
        first = await store.read(lambda tx: tx.task_lists.page(wanted, limit=10))
        assert first.tasks == []
        assert first.last is not None
        second = await store.read(lambda tx: tx.task_lists.page(wanted, after=first.last, limit=10))
        assert _ids(second.tasks) == ["t00000"]
        assert second.last is None
        assert await _all_pages(store, wanted, newest_first=False, limit=10) == ["t00000"]

    async def test_counts_follow_all_changes_of_tasks(self, store: StateStore) -> None:
        chance = random.Random(_SEED)
        tasks = {task.task_id: task for task in _random_tasks(chance, 100)}

        async def check() -> None:
            expected = Counter((task.service_name, task.status) for task in tasks.values())
            assert await store.read(lambda tx: tx.task_lists.counts()) == expected

        await check_empty(store)
        await store.transact(lambda tx: tx.sessions.insert([a_session(f"s{n}") for n in range(3)]))
        await store.transact(lambda tx: tx.tasks.insert([*tasks.values()]))
        await check()
        moved = {
            task.task_id: task._replace(status=status, finished_at=NOW if status.is_terminal else None)
            for task in tasks.values()
            if task.status in _OPEN and (status := chance.choice([*TaskStatus]))
        }
        tasks.update(moved)
        await store.transact(lambda tx: tx.tasks.update([*moved.values()]))
        await check()
        await store.transact(lambda tx: tx.tasks.update([*tasks.values()]))  # without a change
        await check()
        await store.transact(lambda tx: tx.sessions.delete(["s0", "s1"]))
        tasks = {task_id: task for task_id, task in tasks.items() if task.session_id == "s2"}
        await check()
        await store.transact(lambda tx: tx.sessions.delete(["s2"]))
        await check_empty(store)

    async def test_a_transaction_that_fails_counts_nothing(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert([a_task(status=TaskStatus.FAILED, finished_at=NOW)])
            raise RuntimeError("no")

        try:
            await store.transact(work)
        except RuntimeError:
            await check_empty(store)

    async def test_the_tags_of_deleted_tasks_are_deleted(self, store: StateStore) -> None:
        tagged = a_task("t1", tags='["red", "red", "blue"]')
        await store.transact(lambda tx: tx.sessions.insert([a_session("s1"), a_session("s2")]))
        await store.transact(
            lambda tx: tx.tasks.insert([tagged, a_task("t2", session_id="s2", tags='["red"]')])
        )
        red = TaskConditions(tags=["red"])
        assert _ids((await store.read(lambda tx: tx.task_lists.page(red))).tasks) == ["t2", "t1"]
        await store.transact(lambda tx: tx.sessions.delete(["s1"]))
        assert _ids((await store.read(lambda tx: tx.task_lists.page(red))).tasks) == ["t2"]
        await store.transact(lambda tx: tx.sessions.delete(["s2"]))
        # A page of a tag whose task is gone would not be empty, but have a place to go on.
        assert await store.read(lambda tx: tx.task_lists.page(red, limit=1)) == ([], None)

    async def test_steps_come_back_in_order_until_their_task_is_deleted(self, store: StateStore) -> None:
        rows = [StepsRecord("t1", *place, "[]") for place in ((1, 0), (1, 2), (2, 0), (10, 0))]
        other = StepsRecord("t2", 1, 0, '["ä"]')
        await store.transact(lambda tx: tx.sessions.insert([a_session("s1")]))
        await store.transact(lambda tx: tx.tasks.insert([a_task("t1")]))
        await store.transact(lambda tx: tx.steps.put([*reversed(rows), other]))
        assert await store.read(lambda tx: tx.steps.load("t1")) == rows
        assert await store.read(lambda tx: tx.steps.load("t1", limit=1)) == rows[:1]
        assert await store.read(lambda tx: tx.steps.load("t1", after=(1, 0), limit=2)) == rows[1:3]
        await store.transact(lambda tx: tx.sessions.delete(["s1"]))
        assert await store.read(lambda tx: tx.steps.load("t1")) == []
        assert await store.read(lambda tx: tx.steps.load("t2")) == [other]


async def check_empty(store: StateStore) -> None:
    """Check that no task is counted."""
    assert await store.read(lambda tx: tx.task_lists.counts()) == {}
