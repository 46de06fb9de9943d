"""The questions of tasks, and the callbacks that answer them."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.question_records import CallbackRecord, QuestionHead, QuestionRecord
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.testing.state_store_suite.base import StoreTests
from llama_deploy.types.questions import QuestionState

_SECOND = timedelta(seconds=1)


def a_question(question_id: str = "q1", *, tags: Sequence[str] = (), **changes: Any) -> QuestionRecord:
    """Return a question to store, with any other field in `changes`."""
    question = QuestionRecord(
        question_id=question_id,
        task_id="t1",
        session_id="s1",
        service_name="greeter",
        since=NOW,
        event_types='["app.Reply"]',
        prompt='{"text": "Zoë?"}',
        answer_schema="{}",
        tags=json.dumps(list(tags)) if tags else "[]",
    )
    return question._replace(**changes)


def head_of(question: QuestionRecord) -> QuestionHead:
    """Return what decisions read of a question."""
    return QuestionHead(*(getattr(question, name) for name in QuestionHead._fields))


class QuestionTests(StoreTests):
    """A store keeps questions, and lists the open ones."""

    async def test_questions_come_back_as_they_were_stored(self, store: StateStore) -> None:
        full = QuestionRecord(
            question_id="q2",
            task_id="t2",
            session_id="s2",
            service_name="other",
            since=NOW,
            event_types="[1]",
            prompt="{2}",
            answer_schema="{3}",
            state=QuestionState.REFUSED,
            step="ask",
            checks="{4}",
            requirements="{5}",
            prompt_type="Ask",
            deadline=NOW + _SECOND,
            times_out_at=NOW + 2 * _SECOND,
            default_answer="{6}",
            assignee="ann",
            tags="[]",
            closed_at=NOW + 3 * _SECOND,
            reason="no",
            answer_key="k",
            tenant="x",
        )
        await store.transact(lambda tx: tx.questions.insert([a_question(), full]))
        found = await store.read(lambda tx: tx.questions.load(["q1", "q2", "unknown"]))
        assert found == {"q1": a_question(), "q2": full}
        heads = await store.read(lambda tx: tx.questions.heads(["q2", "unknown"]))
        assert heads == [head_of(full)]

    async def test_a_question_is_stored_once_and_opens_again_after_it_was_withdrawn(
        self, store: StateStore
    ) -> None:
        states = {
            QuestionState.ANSWERED: QuestionState.ANSWERED,
            QuestionState.OPEN: QuestionState.OPEN,
            QuestionState.WITHDRAWN: QuestionState.OPEN,
        }
        before = [a_question(each.value, tags=["red"], state=each) for each in states]
        await store.transact(lambda tx: tx.questions.insert(before))
        again = [each._replace(prompt="{}", state=QuestionState.OPEN) for each in before]
        await store.transact(lambda tx: tx.questions.insert(again))
        found = await store.read(lambda tx: tx.questions.load([each.value for each in states]))
        assert {each.state.value for each in found.values()} == {"open", "answered"}
        assert [found[each.value].state for each in states] == list(states.values())
        assert {each.prompt for each in found.values()} == {'{"text": "Zoë?"}'}
        page = await store.read(lambda tx: tx.questions.page(tag="red"))
        assert [each.question_id for each in page] == ["open", "withdrawn"]

    async def test_pages_follow_each_other_by_time_and_id(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.questions.insert([a_question(name, since=NOW + _SECOND) for name in ("b", "a")])
            tx.questions.insert([a_question("c"), a_question("d", state=QuestionState.ANSWERED)])

        await store.transact(work)
        listed: list[str] = []
        after: tuple[datetime, str] | None = None

        def page_of(tx: StoreTransaction) -> list[QuestionRecord]:
            return tx.questions.page(after=after, limit=2)

        while page := await store.read(page_of):
            assert len(page) <= 2
            listed += [each.question_id for each in page]
            after = page[-1].since, page[-1].question_id
        assert listed == ["c", "a", "b"]

    async def test_a_page_is_bounded_in_bytes(self, store: StateStore) -> None:
        prompt = json.dumps({"text": "é" * 500}, ensure_ascii=False)
        large = [a_question(f"q{number}", prompt=prompt) for number in range(4)]
        await store.transact(lambda tx: tx.questions.insert(large))

        async def listed(max_bytes: int) -> int:
            return len(await store.read(lambda tx: tx.questions.page(max_bytes=max_bytes)))

        assert [await listed(size) for size in (1, 1500, 2100, 10_000)] == [1, 1, 2, 4]

    async def test_filters_hold_together(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.questions.insert(
                [
                    a_question("a", tags=["red", "hot"], assignee="ann"),
                    a_question("b", tags=["red"], service_name="other"),
                    a_question("c", assignee="ann", service_name="other"),
                ]
            )

        await store.transact(work)

        async def listed(**filters: str) -> str:
            page = await store.read(lambda tx: tx.questions.page(**filters))  # type: ignore[arg-type]
            return "".join(each.question_id for each in page)

        assert await listed() == "abc"
        assert await listed(tag="red") == "ab"
        assert await listed(tag="hot", assignee="ann", service_name="greeter") == "a"
        assert await listed(assignee="ann") == "ac"
        assert await listed(service_name="other") == "bc"
        assert await listed(service_name="other", tag="red") == "b"
        assert not await listed(tag="cold")

    async def test_closed_questions_are_not_listed(self, store: StateStore) -> None:
        names = [f"q{number}" for number in range(5)]

        def work(tx: StoreTransaction) -> None:
            tx.questions.insert([a_question(each, tags=["red"], task_id=f"t {each}") for each in names])
            answered = head_of(a_question("q0"))._replace(
                state=QuestionState.ANSWERED, closed_at=NOW, answer_key="k"
            )
            tx.questions.update([answered])
            tx.questions.close(["q0", "q1"], QuestionState.WITHDRAWN, at=NOW + _SECOND)
            tx.questions.end(["t q0", "t q2", "unknown"], at=NOW + 2 * _SECOND)
            tx.questions.assign("q0", "ann")
            tx.questions.assign("q3", "ann")

        await store.transact(work)
        found = await store.read(lambda tx: tx.questions.load(names))
        assert [(found[each].state.value, found[each].assignee) for each in names] == [
            ("answered", None),
            ("withdrawn", None),
            ("ended", None),
            ("open", "ann"),
            ("open", None),
        ]
        assert found["q0"].answer_key == "k"
        assert [found[each].closed_at for each in names[:3]] == [NOW, NOW + _SECOND, NOW + 2 * _SECOND]
        for page in (
            await store.read(lambda tx: tx.questions.page()),
            await store.read(lambda tx: tx.questions.page(tag="red")),
        ):
            assert [each.question_id for each in page] == ["q3", "q4"]
        reopened = head_of(found["q0"])._replace(state=QuestionState.OPEN, closed_at=None, answer_key=None)
        await store.transact(lambda tx: tx.questions.update([reopened]))
        page = await store.read(lambda tx: tx.questions.page(tag="red"))
        assert [each.question_id for each in page] == ["q0", "q3", "q4"]

    async def test_the_open_questions_of_tasks_are_found(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.questions.insert(
                [
                    a_question("late", since=NOW + _SECOND),
                    a_question("early"),
                    a_question("answered", state=QuestionState.ANSWERED),
                    a_question("other", task_id="t2"),
                ]
            )

        await store.transact(work)
        heads = await store.read(lambda tx: tx.questions.open_heads(["t1"]))
        assert [each.question_id for each in heads] == ["early", "late"]
        ids = await store.read(lambda tx: tx.questions.open_ids(["t1", "t2"]))
        assert sorted(ids) == [("t1", "early"), ("t1", "late"), ("t2", "other")]
        whole = await store.read(lambda tx: tx.questions.of_task("t1", limit=1))
        assert [each.question_id for each in whole] == ["early"]

    async def test_questions_are_due_by_their_deadline(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.questions.insert(
                [
                    a_question("second", deadline=NOW + _SECOND),
                    a_question("first", deadline=NOW),
                    a_question("closed", deadline=NOW, state=QuestionState.ANSWERED),
                    a_question("never"),
                ]
            )

        await store.transact(work)

        async def due(due_before: datetime | None, limit: int = 9) -> list[str]:
            found = await store.read(lambda tx: tx.questions.due(due_before=due_before, limit=limit))
            return [each.question_id for each in found]

        assert await due(None) == ["first", "second"]
        assert await due(None, 1) == ["first"]
        assert await due(NOW + _SECOND) == ["first"]
        assert await due(NOW) == []

    async def test_deleting_a_session_deletes_its_questions_and_callbacks(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.sessions.insert([a_session(), a_session("s2")])
            tx.tasks.insert([a_task(), a_task("t2", session_id="s2")])
            tx.questions.insert([a_question(tags=["red"]), a_question("q2", task_id="t2", tags=["red"])])
            tx.questions.put_callback(CallbackRecord("h1", "q1", "t1", NOW))
            tx.questions.put_callback(CallbackRecord("h2", "q2", "t2", NOW))
            tx.sessions.delete(["s1"])

        await store.transact(work)
        page = await store.read(lambda tx: tx.questions.page(tag="red"))
        assert [each.question_id for each in page] == ["q2"]
        assert await store.read(lambda tx: tx.questions.find_callback("h1")) is None
        assert await store.read(lambda tx: tx.questions.find_callback("h2")) == CallbackRecord(
            "h2", "q2", "t2", NOW
        )
