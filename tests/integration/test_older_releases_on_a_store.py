"""What a control plane of an earlier release changes in a store whose newer tables it does not know."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.question_records import CallbackRecord, QuestionRecord
from llama_deploy.state_stores.records import SavedStateRecord
from llama_deploy.state_stores.sql.transaction import SQLTransaction
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.types import TaskStatus
from llama_deploy.types.questions import QuestionState


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[StateStore]:
    uri = "sqlite:///:memory:"
    if request.param == "postgresql":
        uri = request.getfixturevalue("postgresql_uri")
    async with await open_state_store(uri) as store:
        await store.transact(fill)
        yield store


def fill(tx: StoreTransaction) -> None:
    session = a_session("s1")._replace(tags=json.dumps(["tag"]))
    tx.sessions.insert([session])
    tx.sessions.save_states([SavedStateRecord("s1", 1, "{}", NOW)], keep=20)
    tx.tasks.insert([a_task("t1", session_id="s1", status=TaskStatus.RUNNING, wait_reports=1)])
    question = QuestionRecord(
        question_id="q1",
        task_id="t1",
        session_id="s1",
        service_name="service",
        since=NOW,
        event_types='["E"]',
        prompt="{}",
        answer_schema="{}",
        tags='["tag"]',
        deadline=NOW,
    )
    tx.questions.insert([question])
    tx.questions.put_callback(CallbackRecord("hash", "q1", "t1", NOW))


def send(tx: StoreTransaction, *statements: str) -> None:
    assert isinstance(tx, SQLTransaction)
    for each in statements:
        tx._connection.execute(sa.text(each), {})


async def test_the_questions_of_a_task_end_with_it(store: StateStore) -> None:
    end = "UPDATE tasks SET status = 'failed', finished_at = 1000000 WHERE task_id = 't1'"
    await store.transact(lambda tx: send(tx, end))
    assert await store.read(lambda tx: tx.questions.page()) == []
    assert await store.read(lambda tx: tx.questions.page(tag="tag")) == []
    assert await store.read(lambda tx: tx.questions.due(due_before=NOW + timedelta(1))) == []
    question = (await store.read(lambda tx: tx.questions.load(["q1"])))["q1"]
    assert question.state is QuestionState.ENDED
    assert question.closed_at is not None
    assert question.closed_at.timestamp() == 1


async def test_nothing_is_left_of_a_session(store: StateStore) -> None:
    await store.transact(
        lambda tx: send(
            tx, "DELETE FROM tasks WHERE session_id = 's1'", "DELETE FROM sessions WHERE session_id = 's1'"
        )
    )
    assert await store.read(lambda tx: tx.questions.load(["q1"])) == {}
    assert await store.read(lambda tx: tx.questions.find_callback("hash")) is None
    await store.transact(fill)  # the session comes again
    assert len(await store.read(lambda tx: tx.questions.page(tag="tag"))) == 1
