"""Questions of runs as rows: who asks, what is shown, and how each is answered once."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Literal

import pytest
from pydantic import Field
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.errors import (
    AnswerNotAcceptedError,
    CallbackNotFoundError,
    QuestionClosedError,
    QuestionNotFoundError,
)
from llama_deploy.types import TaskStatus
from llama_deploy.types.owners import THE_DEFAULT_TENANT
from llama_deploy.types.questions import Answer, Question, QuestionState
from llama_deploy.web.responses import unexpected_response
from tests.integration.in_process import Stack, failure_of, result_of, running_stack, until


class Ask(InputRequiredEvent):
    text: str
    assignee: str | None = None
    tags: list[str] = Field(default_factory=list)
    deadline: float | None = None
    default: dict[str, Any] | None = None


class Reply(HumanResponseEvent):
    text: str
    grade: int = 0


class Decision(HumanResponseEvent):
    verdict: Literal["yes", "no"]


class AsksInside(Workflow):
    """A step waits in its middle."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        options = {name: ev.get(name) for name in ("assignee", "deadline", "default") if ev.get(name)}
        asking = Ask(text="name?", tags=ev.get("tags", []), **options)
        reply = await ctx.wait_for_event(Reply, waiter_event=asking, timeout=ev.get("timeout"))
        return StopEvent(result=f"hello {reply.text}")


class AsksByEvent(Workflow):
    """A step ends with the question, another begins with the answer."""

    @step
    async def ask(self, ev: StartEvent) -> Ask:
        return Ask(text="name?", assignee="ann")

    @step
    async def hear(self, ev: Reply) -> StopEvent:
        return StopEvent(result=f"hello {ev.text}")


class Streams(Workflow):
    """A step streams the question, then waits, as programs for older releases do."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Ask(text="name?"))
        reply = await ctx.wait_for_event(Reply)
        return StopEvent(result=f"hello {reply.text}")


class Item(Event):
    number: int


class Approved(Event):
    number: int
    text: str


class AsksOften(Workflow):
    """Several runs of one step ask the same at the same time."""

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Item | None:
        for number in range(ev.count):
            ctx.send_event(Item(number=number))
        return None

    @step(num_workers=8)
    async def ask(self, ctx: Context, ev: Item) -> Approved:
        name = f"item {ev.number}"
        reply = await ctx.wait_for_event(Reply, waiter_event=Ask(text=name), waiter_id=name)
        return Approved(number=ev.number, text=reply.text)

    @step
    async def join(self, ctx: Context, ev: Approved) -> StopEvent | None:
        async with ctx.store.edit_state() as state:
            state["got"] = {**state.get("got", {}), str(ev.number): ev.text}
            got = state["got"]
        return StopEvent(result=got) if len(got) == 4 else None


class AsksInTurn(Workflow):
    """Asks the same again and again, under the same name."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent | Item) -> StopEvent | Item:
        number = ev.number if isinstance(ev, Item) else 0
        reply = await ctx.wait_for_event(Reply, waiter_event=Ask(text="next?"), waiter_id="next")
        return StopEvent(result=number) if reply.text == "stop" else Item(number=number + 1)


class Volatile(Workflow):
    """Holds what cannot be stored, and asks twice."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item:
        await ctx.store.set("lock", asyncio.Lock())
        return Item(number=1)

    @step
    async def ask(self, ctx: Context, ev: Item) -> StopEvent:
        first = await ctx.wait_for_event(Reply, waiter_event=Ask(text="first?"), waiter_id="1")
        second = await ctx.wait_for_event(Reply, waiter_event=Ask(text="second?"), waiter_id="2")
        return StopEvent(result=[first.text, second.text])


class Decides(Workflow):
    """Takes only certain answers."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        decision = await ctx.wait_for_event(Decision, requirements={"order": 5})
        return StopEvent(result=[decision.verdict, decision.order])


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def questions_of(stack: Stack, task_id: str, *, count: int = 1) -> list[Question]:
    async def are_there() -> bool:
        return len((await stack.plane.inbox.of_task(task_id)).items) == count

    await until(are_there)
    return (await stack.plane.inbox.of_task(task_id)).items


async def state_of(stack: Stack, question: Question) -> QuestionState:
    return (await stack.plane.inbox.get(question.question_id)).state


async def status_of(stack: Stack, task_id: str) -> TaskStatus:
    return (await stack.plane.tasks.get(task_id)).status


IDLE = pytest.mark.parametrize("idle_timeout", [0.0, 60.0], ids=["parked", "in memory"])
KINDS = pytest.mark.parametrize("durability", ["auto", "task"])


@KINDS
@IDLE
@pytest.mark.parametrize("workflow", [AsksInside, AsksByEvent, Streams])
async def test_a_question_is_listed_and_its_answer_reaches_the_run(
    stack: Stack, workflow: type[Workflow], idle_timeout: float, durability: str
) -> None:
    service = stack.service(workflow(timeout=None), idle_timeout=idle_timeout, durability=durability)
    async with stack.serving(service):
        task_id = await stack.submit()
        [question] = await questions_of(stack, task_id)
        assert question.prompt["text"] == "name?"
        assert question.prompt_type == "Ask"
        assert question.event_type.endswith("Reply")
        assert question.answer_schema["required"] == ["text"]
        assert question.service_name == "service"
        assert question.task_id == task_id
        assert (question.step is None) == (workflow is AsksByEvent)
        await until(lambda: _waits(stack, task_id))
        answered = await stack.plane.inbox.answer(question.question_id, Answer(event={"text": "Zoë"}))
        assert answered.state is QuestionState.ANSWERED
        assert result_of(await stack.end(task_id)) == "hello Zoë"
        assert await state_of(stack, question) is QuestionState.ANSWERED
        assert (await stack.plane.inbox.list(owner=THE_DEFAULT_TENANT)).items == []


async def _waits(stack: Stack, task_id: str) -> bool:
    return await status_of(stack, task_id) is TaskStatus.WAITING


@IDLE
async def test_an_answer_counts_once(stack: Stack, idle_timeout: float) -> None:
    async with stack.serving(stack.service(AsksInside(timeout=None), idle_timeout=idle_timeout)):
        task_id = await stack.submit()
        [question] = await questions_of(stack, task_id)
        first = Answer(event={"text": "a"}, idempotency_key="k")
        answers = [
            first,
            first,
            Answer(event={"text": "b"}, idempotency_key="l"),
            Answer(event={"text": "c"}),
        ]
        outcomes = await asyncio.gather(
            *(stack.plane.inbox.answer(question.question_id, each) for each in answers),
            return_exceptions=True,
        )
        assert [type(each) for each in outcomes] == [Question, Question, *[QuestionClosedError] * 2]
        assert result_of(await stack.end(task_id)) == "hello a"
        assert (await stack.plane.inbox.answer(question.question_id, first)).state is QuestionState.ANSWERED
        with pytest.raises(QuestionClosedError, match="was answered at"):
            await stack.plane.inbox.answer(question.question_id, Answer(event={"text": "d"}))


@IDLE
async def test_each_of_several_equal_questions_gets_its_own_answer(stack: Stack, idle_timeout: float) -> None:
    async with stack.serving(stack.service(AsksOften(timeout=None), idle_timeout=idle_timeout)):
        task_id = await stack.submit(count=4)
        questions = await questions_of(stack, task_id, count=4)
        assert len({each.question_id for each in questions}) == 4
        for question in reversed(questions):
            text = question.prompt["text"]
            await stack.plane.inbox.answer(question.question_id, Answer(event={"text": text.upper()}))
        expected = {str(number): f"ITEM {number}" for number in range(4)}
        assert result_of(await stack.end(task_id)) == expected


@KINDS
async def test_a_question_that_is_asked_again_after_its_answer_is_another_one(
    stack: Stack, durability: str
) -> None:
    service = stack.service(AsksInTurn(timeout=None), idle_timeout=0.0, durability=durability)
    async with stack.serving(service):
        task_id = await stack.submit()
        known = set[str]()
        for text in ("go", "go", "stop"):
            await until(lambda: _is_new(stack, task_id, known))
            [question] = await questions_of(stack, task_id)
            known.add(question.question_id)
            await stack.plane.inbox.answer(question.question_id, Answer(event={"text": text}))
        assert result_of(await stack.end(task_id)) == 2
        assert len(known) == 3


async def _is_new(stack: Stack, task_id: str, known: set[str]) -> bool:
    found = (await stack.plane.inbox.of_task(task_id)).items
    return len(found) == 1 and found[0].question_id not in known


async def test_an_event_that_is_sent_the_old_way_answers_the_question(stack: Stack) -> None:
    for workflow in (AsksInside, AsksByEvent):
        async with stack.serving(stack.service(workflow(timeout=None))):
            task_id = await stack.submit()
            [question] = await questions_of(stack, task_id)
            await stack.send(task_id, Reply(text="Bo"))
            assert await state_of(stack, question) is QuestionState.ANSWERED
            with pytest.raises(QuestionClosedError):
                await stack.plane.inbox.answer(question.question_id, Answer(event={"text": "late"}))
            assert result_of(await stack.end(task_id)) == "hello Bo"


async def test_a_wrong_answer_is_refused_with_the_reason_and_the_question_stays_open(stack: Stack) -> None:
    async with stack.serving(stack.service(Decides(timeout=None))):
        task_id = await stack.submit()
        [question] = await questions_of(stack, task_id)
        wrong: list[tuple[Answer, str]] = [
            (Answer(event={}), "verdict: missing"),
            (Answer(event={"verdict": "perhaps"}), "verdict: expected one of 'yes', 'no'"),
            (Answer(event={"verdict": "yes", "order": 6}), "order: must be 5"),
            (Answer(event={"verdict": "yes"}, type="Reply"), "does not take a Reply; it takes: .*Decision"),
        ]
        for answer, reason in wrong:
            with pytest.raises(AnswerNotAcceptedError, match=reason):
                await stack.plane.inbox.answer(question.question_id, answer)
        await stack.plane.inbox.answer(question.question_id, Answer(event={"verdict": "no"}))
        assert result_of(await stack.end(task_id)) == ["no", 5]
    with pytest.raises(QuestionNotFoundError):
        await stack.plane.inbox.answer("wait-0", Answer(event={}))


@IDLE
async def test_a_refusal_fails_the_task(stack: Stack, idle_timeout: float) -> None:
    async with stack.serving(stack.service(AsksInside(timeout=None), idle_timeout=idle_timeout)):
        task_id = await stack.submit()
        [question] = await questions_of(stack, task_id)
        refused = await stack.plane.inbox.refuse(question.question_id, "not mine")
        assert (refused.state, refused.reason) == (QuestionState.REFUSED, "not mine")
        kind, message = failure_of(await stack.end(task_id))
        assert kind == "llama_deploy.errors.QuestionRefusedError"
        assert message.endswith("was refused: not mine")
        assert await stack.plane.inbox.refuse(question.question_id, "not mine") == refused
        with pytest.raises(QuestionClosedError, match=r"was refused at .*: not mine"):
            await stack.plane.inbox.answer(question.question_id, Answer(event={"text": "late"}))


@IDLE
async def test_questions_end_with_their_task(stack: Stack, idle_timeout: float) -> None:
    async with stack.serving(stack.service(AsksOften(timeout=None), idle_timeout=idle_timeout)):
        task_id = await stack.submit(count=3)
        questions = await questions_of(stack, task_id, count=3)
        await stack.plane.tasks.cancel(task_id)
        await stack.end(task_id)
        assert (await stack.plane.inbox.list(owner=THE_DEFAULT_TENANT)).items == []
        with pytest.raises(QuestionClosedError, match="has ended with its task"):
            await stack.plane.inbox.answer(questions[1].question_id, Answer(event={"text": "late"}))


@IDLE
async def test_a_deadline_answers_with_the_default(stack: Stack, idle_timeout: float) -> None:
    async with stack.serving(stack.service(AsksInside(timeout=None), idle_timeout=idle_timeout)):
        task_id = await stack.submit(deadline=0.5, default={"text": "nobody"})
        [question] = await questions_of(stack, task_id)
        assert question.default == {"text": "nobody", "grade": 0}
        assert question.deadline is not None
        assert timedelta(0) < question.deadline - question.since < timedelta(seconds=1)
        assert result_of(await stack.end(task_id)) == "hello nobody"
        assert await state_of(stack, question) is QuestionState.EXPIRED


@IDLE
async def test_a_deadline_without_a_default_fails_the_task(stack: Stack, idle_timeout: float) -> None:
    async with stack.serving(stack.service(AsksInside(timeout=None), idle_timeout=idle_timeout)):
        task_id = await stack.submit(deadline=0.3)
        [question] = await questions_of(stack, task_id)
        kind, message = failure_of(await stack.end(task_id))
        assert kind == "llama_deploy.errors.QuestionExpiredError"
        assert "was not answered until its deadline" in message
        assert await state_of(stack, question) is QuestionState.EXPIRED


async def test_a_time_limit_of_the_run_withdraws_the_question(stack: Stack) -> None:
    async with stack.serving(stack.service(AsksInside(timeout=None))):
        task_id = await stack.submit(timeout=0.5)
        [question] = await questions_of(stack, task_id)
        assert question.deadline is not None
        view = await stack.end(task_id)
        assert view.status is TaskStatus.FAILED
        assert await state_of(stack, question) in (QuestionState.WITHDRAWN, QuestionState.ENDED)


async def test_assignees_tags_and_services_filter_the_inbox(stack: Stack) -> None:
    async with (
        stack.serving(stack.service(AsksInside(timeout=None), "a")),
        stack.serving(stack.service(AsksInside(timeout=None), "b")),
    ):
        first = await stack.submit("a", assignee="ann", tags=["red", "hot"])
        second = await stack.submit("b", tags=["red"])
        [one], [two] = await questions_of(stack, first), await questions_of(stack, second)

        async def listed(**filters: Any) -> set[str]:
            return {
                each.question_id
                for each in (await stack.plane.inbox.list(owner=THE_DEFAULT_TENANT, **filters)).items
            }

        both = {one.question_id, two.question_id}
        assert await listed() == both
        assert await listed(tag="red") == both
        assert await listed(tag="hot") == await listed(service_name="a") == {one.question_id}
        assert await listed(assignee="ann", tag="red", service_name="a") == {one.question_id}
        assert await listed(assignee="ann", service_name="b") == set()
        assert (await stack.plane.inbox.assign(two.question_id, "ann")).assignee == "ann"
        assert await listed(assignee="ann") == both
        page = await stack.plane.inbox.list(owner=THE_DEFAULT_TENANT, limit=1)
        rest = await stack.plane.inbox.list(owner=THE_DEFAULT_TENANT, limit=1, cursor=page.next_cursor)
        assert {each.question_id for each in (*page.items, *rest.items)} == both
        assert rest.next_cursor is None
        await stack.plane.inbox.answer(one.question_id, Answer(event={"text": "x"}))
        assert await listed(tag="hot") == set()


async def test_a_callback_answers_one_question_once(stack: Stack) -> None:
    async with stack.serving(stack.service(AsksInside(timeout=None))):
        task_id = await stack.submit()
        [question] = await questions_of(stack, task_id)
        callback = await stack.plane.inbox.callback(question.question_id, base_url="http://host")
        assert callback.url.startswith("http://host/callbacks/")
        token = callback.url.rpartition("/")[2]
        with pytest.raises(AnswerNotAcceptedError):
            await stack.plane.inbox.call_back(token, {})
        await stack.plane.inbox.call_back(token, {"text": "Cy"})
        await stack.plane.inbox.call_back(token, {"text": "Cy"})
        with pytest.raises(QuestionClosedError):
            await stack.plane.inbox.call_back(token, {"text": "Di"})
        with pytest.raises(CallbackNotFoundError):
            await stack.plane.inbox.call_back("x", {"text": "Di"})
        assert result_of(await stack.end(task_id)) == "hello Cy"


async def test_a_volatile_run_that_begins_again_finds_its_questions(stack: Stack) -> None:
    async with stack.serving(stack.service(Volatile(timeout=None), drain_timeout=0.1)):
        task_id = await stack.submit()
        [first] = await questions_of(stack, task_id)
        assert first.prompt["text"] == "first?"
        await stack.plane.inbox.answer(first.question_id, Answer(event={"text": "1"}))
        await until(lambda: _is_new(stack, task_id, {first.question_id}))
        [second] = await questions_of(stack, task_id)
    # The process has gone; the next one starts the run from its beginning.
    assert [each.question_id for each in await questions_of(stack, task_id)] == [second.question_id]
    async with stack.serving(stack.service(Volatile(timeout=None))):
        await until(lambda: _waits(stack, task_id))
        assert [each.question_id for each in await questions_of(stack, task_id)] == [second.question_id]
        await stack.plane.inbox.answer(second.question_id, Answer(event={"text": "2"}))
        assert result_of(await stack.end(task_id)) == ["1", "2"]


async def test_a_resumed_run_asks_the_same_question(stack: Stack) -> None:
    async with stack.serving(stack.service(AsksOften(timeout=None), drain_timeout=0.1)):
        task_id = await stack.submit(count=4)
        before = {each.question_id: each for each in await questions_of(stack, task_id, count=4)}
    async with stack.serving(stack.service(AsksOften(timeout=None), idle_timeout=0.0)):
        for name, question in before.items():
            text = question.prompt["text"]
            await stack.plane.inbox.answer(name, Answer(event={"text": text}))
            assert {
                each.question_id for each in (await stack.plane.inbox.list(owner=THE_DEFAULT_TENANT)).items
            } <= before.keys()
        assert len(result_of(await stack.end(task_id))) == 4


def test_the_token_of_a_callback_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    unexpected_response("POST", "/callbacks/secret", ValueError("wrong"))
    assert "POST /callbacks/... failed" in caplog.text
    assert "secret" not in caplog.text


async def test_the_store_does_not_have_the_token_of_a_callback(stack: Stack) -> None:
    async with stack.serving(stack.service(AsksInside(timeout=None))):
        task_id = await stack.submit()
        [question] = await questions_of(stack, task_id)
        callback = await stack.plane.inbox.callback(question.question_id, base_url="")
        token = callback.url.rpartition("/")[2]
        digest = hashlib.sha256(token.encode()).hexdigest()
        stored = await stack.store.read(lambda tx: tx.questions.find_callback(digest))
        assert stored is not None
        assert token not in str(stored)
        assert await stack.store.read(lambda tx: tx.questions.find_callback(token)) is None
        await stack.plane.tasks.cancel(task_id)
