"""Lists and counts of what belongs to a tenant, or to one subject in it."""

# A test's name says what it shows. Nothing here is secret.
# ruff: noqa: D102, S311

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.list_repositories import ListKey, TaskConditions
from llama_deploy.state_stores.records import SessionRecord, TaskRecord
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.testing.state_store_suite.base import StoreTests
from llama_deploy.testing.state_store_suite.question_cases import a_question
from llama_deploy.types import TaskStatus
from llama_deploy.types.keys import internal_key
from llama_deploy.types.owners import Owner

OWNERS: Final = [
    Owner(),
    Owner("acme"),
    Owner("ac"),
    Owner("acme", "zoe"),
    Owner("ac", "zoe"),
    Owner("", "zoe"),
]


def _owns(owner: Owner, tenant: str, subject: str | None) -> bool:
    return owner.tenant == tenant and owner.subject in (None, subject)


def _rows() -> tuple[list[SessionRecord], list[TaskRecord]]:
    """Return sessions of all owners, and their tasks."""
    chance = random.Random(30)
    sessions = [
        a_session(internal_key(owner.tenant, f"s{number}"))._replace(
            tenant=owner.tenant, subject=owner.subject, tags=json.dumps(["red"] * (number % 7 < 4))
        )
        for number, owner in enumerate(OWNERS * 3)
    ]
    tasks = []
    for number in range(300):
        session, status = chance.choice(sessions), chance.choice([*TaskStatus])
        tasks.append(
            a_task(
                internal_key(session.tenant, f"acme{number:03}"),
                session_id=session.session_id,
                status=status,
                service_name=chance.choice(["greeter", "adder"]),
                created_at=NOW + timedelta(seconds=number),
                finished_at=NOW if status.is_terminal else None,
                tags=chance.choice(['["red"]', "[]"]),
                tenant=session.tenant,
                subject=session.subject,
            )
        )
    return sessions, tasks


class OwnerTests(StoreTests):
    """A store lists and counts what belongs to a tenant or a subject, and nothing else."""

    async def test_lists_of_an_owner_have_its_tasks_only(self, store: StateStore) -> None:
        sessions, tasks = _rows()
        await store.transact(lambda tx: (tx.sessions.insert(sessions), tx.tasks.insert(tasks)))
        choices = itertools.product(OWNERS, (None, "greeter"), (False, True), ((), ("red",)))
        for owner, name, failed, tags in choices:
            statuses = frozenset({TaskStatus.FAILED, TaskStatus.WAITING} if failed else ())
            wanted = TaskConditions(statuses, service_name=name, tags=tags, owner=owner)
            expected = [
                task.task_id
                for task in tasks
                if _owns(owner, task.tenant, task.subject)
                and name in (None, task.service_name)
                and (not failed or task.status in statuses)
                and (not tags or task.tags != "[]")
            ]
            assert await self._listed(store, wanted) == expected, wanted
            by_id = TaskConditions(
                statuses, service_name=name, tags=tags, owner=owner, prefix=owner.key_of("ac")
            )
            page = await store.read(lambda tx, by_id=by_id: tx.task_lists.page_by_id(by_id, limit=500))  # type: ignore[misc]
            assert [task.task_id for task in page.tasks] == sorted(expected), wanted

    async def _listed(self, store: StateStore, wanted: TaskConditions) -> Sequence[str]:
        found: list[str] = []
        after: ListKey | None = None
        while True:
            page = await store.read(
                lambda tx, after=after: tx.task_lists.page(wanted, newest_first=False, after=after, limit=40)  # type: ignore[misc]
            )
            found += [task.task_id for task in page.tasks]
            if page.last is None:
                return found
            after = page.last

    async def test_counts_of_an_owner_follow_all_changes(self, store: StateStore) -> None:
        sessions, tasks = _rows()
        await store.transact(lambda tx: (tx.sessions.insert(sessions), tx.tasks.insert(tasks)))

        async def check() -> None:
            for owner in (None, *OWNERS):
                expected = Counter(
                    (task.service_name, task.status)
                    for task in tasks
                    if owner is None or _owns(owner, task.tenant, task.subject)
                )
                found = await store.read(lambda tx, owner=owner: tx.task_lists.counts(owner))  # type: ignore[misc]
                assert found == expected, owner

        await check()
        tasks = [
            task if task.status.is_terminal else task._replace(status=TaskStatus.FAILED, finished_at=NOW)
            for task in tasks
        ]
        await store.transact(lambda tx: tx.tasks.update(tasks))
        await check()
        deleted = {session.session_id for session in sessions[::2]}
        await store.transact(lambda tx: tx.sessions.delete(deleted))
        tasks = [task for task in tasks if task.session_id not in deleted]
        await check()

    async def test_sessions_of_an_owner_are_listed_alone(self, store: StateStore) -> None:
        sessions, _ = _rows()
        await store.transact(lambda tx: tx.sessions.insert(sessions))
        for owner, tag in itertools.product(OWNERS, (None, "red")):
            own = {
                session.session_id
                for session in sessions
                if _owns(owner, session.tenant, session.subject) and (tag is None or session.tags != "[]")
            }
            for newest_first in (False, True):
                found = await store.read(
                    lambda tx, owner=owner, tag=tag, newest_first=newest_first: tx.sessions.heads(  # type: ignore[misc]
                        owner=owner, tag=tag, newest_first=newest_first, limit=100
                    )
                )
                names = [head.session_id for head in found]
                assert sorted(names) == sorted(own), (owner, tag)
                rest = await store.read(
                    lambda tx, owner=owner, tag=tag, newest_first=newest_first, names=names: (
                        tx.sessions.heads(  # type: ignore[misc]
                            owner=owner, tag=tag, after=names[0], newest_first=newest_first, limit=100
                        )
                    )
                )
                assert [head.session_id for head in rest] == names[1:]
            if tag is None:
                page = await store.read(lambda tx, owner=owner: tx.sessions.page(owner=owner))  # type: ignore[misc]
                assert {session.session_id for session in page} == own

    async def test_questions_of_a_subject_are_its_own_and_those_assigned_to_it(
        self, store: StateStore
    ) -> None:
        questions = [
            a_question(
                f"q{number}",
                since=NOW + timedelta(seconds=number),
                tenant=owner.tenant,
                subject=owner.subject,
                assignee="zoe" if number % 4 == 0 else None,
            )
            for number, owner in enumerate(OWNERS * 3)
        ]
        await store.transact(lambda tx: tx.questions.insert(questions))
        for owner in OWNERS:
            own = [
                question.question_id
                for question in questions
                if _owns(owner, question.tenant, question.subject)
                or (question.tenant == owner.tenant and question.assignee == owner.subject is not None)
            ]
            first = await store.read(lambda tx, owner=owner: tx.questions.page(owner=owner, limit=2))  # type: ignore[misc]
            after = (first[-1].since, first[-1].question_id)
            rest = await store.read(
                lambda tx, owner=owner, after=after: tx.questions.page(owner=owner, after=after)  # type: ignore[misc]
            )
            assert [question.question_id for question in [*first, *rest]] == own, owner
