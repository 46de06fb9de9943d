"""Ended tasks that are retried from one of their steps: which steps run again, and with which state."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from llama_deploy.errors import InvalidRequestError, RetryRefusedError, StepNotFoundError
from llama_deploy.types import TaskStatus
from llama_deploy.types.run_past import MAX_PAST_BYTES
from tests.integration.in_process import Stack, result_of, running_stack, until
from tests.integration.repairable_workflows import (
    ALL,
    KEYS,
    ONCE_EACH,
    Answer,
    Approved,
    Done,
    FourSteps,
    Fourth,
    Last,
    Part,
    Second,
    Third,
    Volatile,
    end_of_retry,
    failed,
    has_questions,
    has_taken,
    id_of,
    refused,
    retry,
    steps_of,
)


@pytest.fixture(params=["sqlite", "postgresql"])
async def stack(request: pytest.FixtureRequest) -> AsyncIterator[Stack]:
    is_shared = request.param == "postgresql"
    uri = request.getfixturevalue("postgresql_uri") if is_shared else "sqlite:///:memory:"
    async with running_stack(store_uri=uri) as stack:
        yield stack


@pytest.fixture
async def embedded() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


# -- the state, and which steps run again


@pytest.mark.parametrize("place", range(4), ids=ALL)
@pytest.mark.parametrize("keys", [(), KEYS], ids=["plain", "signed"])
async def test_a_fork_runs_its_step_and_what_followed_with_the_state_of_then(
    stack: Stack, place: int, keys: list[SecretStr]
) -> None:
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow, state_keys=list(keys))):
        task_id = await failed(stack)
        assert [(each.step, each.step_id) for each in await steps_of(stack, task_id)] == [
            (name, f"1.{number}") for number, name in enumerate(ALL, start=1)
        ]
        workflow.is_repaired = True
        before = Counter(workflow.begun)
        again = await retry(stack, task_id, f"1.{place + 1}")
        assert result_of(await stack.end(again.task_id)) == ONCE_EACH
        assert (again.retry_of, again.retry_from) == (task_id, f"1.{place + 1}")
    assert workflow.begun - before == Counter(ALL[place:])
    assert (await stack.plane.tasks.get(task_id)).status is TaskStatus.FAILED


async def test_a_fork_can_be_forked_and_retried(stack: Stack) -> None:
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow, state_keys=KEYS)):
        task_id = await failed(stack)
        again = (await end_of_retry(stack, task_id, "1.2")).task_id
        assert [each.step for each in await steps_of(stack, again)] == ALL[1:]
        third = (await end_of_retry(stack, again, await id_of(stack, again, "third"))).task_id
        retried = (await stack.end((await retry(stack, third, "last_step")).task_id)).task_id
        workflow.is_repaired = True
        for each, name in ((again, "second"), (third, "fourth"), (retried, "fourth")):
            assert result_of(await end_of_retry(stack, each, await id_of(stack, each, name))) == ONCE_EACH


async def test_points_follow_the_journal_over_attempts_and_snapshots(stack: Stack) -> None:
    """A snapshot is made whenever a run leaves its instance, and each of them ends an attempt."""
    workflow = Approved()
    async with stack.serving(stack.service(workflow, idle_timeout=0.0, state_keys=KEYS)):
        task_id = await stack.submit()
        for text in ("ann", "bob"):
            await until(lambda: stack.is_parked(task_id))
            await stack.send(task_id, Answer(text=text))
            await until(lambda text=text: has_taken(workflow, text))
        assert (await stack.end(task_id)).status is TaskStatus.FAILED
        assert {each.attempt for each in await steps_of(stack, task_id)} >= {1, 3}
        workflow.is_repaired = True

        for name, answers, result in (
            ("plan", ["dot", "eva"], ["plan", "dot", "draft", "eva", "publish"]),
            ("draft", ["cid"], ["plan", "ann", "draft", "cid", "publish"]),
            ("publish", [], ["plan", "ann", "draft", "bob", "publish"]),
        ):
            again = (await retry(stack, task_id, await id_of(stack, task_id, name))).task_id
            for answer in answers:
                await until(lambda again=again: stack.is_parked(again))
                await stack.send(again, Answer(text=answer))
            assert result_of(await stack.end(again)) == result


async def test_a_question_after_the_step_is_asked_again_with_its_prompt(embedded: Stack) -> None:
    """In the memory of its instance: no snapshot is between."""
    stack, workflow = embedded, Approved()
    async with stack.serving(stack.service(workflow)):
        task_id = await stack.submit()
        for answered, text in enumerate(("ann", "bob")):
            await until(lambda: has_questions(stack, task_id, 1))
            await stack.send(task_id, Answer(text=text))
            await until(lambda answered=answered: has_count(workflow, answered + 1))
        assert (await stack.end(task_id)).status is TaskStatus.FAILED
        workflow.is_repaired = True
        again = (await retry(stack, task_id, await id_of(stack, task_id, "draft"))).task_id
        await until(lambda: has_questions(stack, again, 1))
        (question,) = (await stack.plane.inbox.of_task(again)).items
        assert (question.step, question.prompt) == ("approve_draft", {"question": "draft?"})
        await stack.send(again, Answer(text="cid"))
        assert result_of(await stack.end(again)) == ["plan", "ann", "draft", "cid", "publish"]


async def has_count(workflow: Approved, count: int) -> bool:
    return len(workflow.taken) == count


async def test_what_was_not_taken_before_the_step_is_not_offered(embedded: Stack) -> None:
    """An event that came early, or was meant for another draft, must not answer the new question."""
    stack, workflow = embedded, Approved()
    async with stack.serving(stack.service(workflow)):
        task_id = await stack.submit()
        for text in ("ann", "bob", "too many"):
            await stack.send(task_id, Answer(text=text))
        assert (await stack.end(task_id)).status is TaskStatus.FAILED
        workflow.is_repaired = True
        again = (await retry(stack, task_id, await id_of(stack, task_id, "draft"))).task_id
        await until(lambda: has_questions(stack, again, 1))
        await stack.send(again, Answer(text="cid"))
        assert result_of(await stack.end(again)) == ["plan", "ann", "draft", "cid", "publish"]


# -- steps that run at the same time


class OnePartFirst(Workflow):
    """Part 0 ends before the others begin to end; collecting fails until it is repaired."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.begun: Counter[str] = Counter()
        self.is_repaired = False
        self.first_is_over = asyncio.Event()

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Part | None:
        for number in range(4):
            ctx.send_event(Part(number=number))
        return None

    @step(num_workers=4)
    async def work(self, ctx: Context, ev: Part) -> Done:
        self.begun[f"work {ev.number}"] += 1
        if ev.number:
            await self.first_is_over.wait()
        return Done(number=ev.number)

    @step
    async def collect(self, ctx: Context, ev: Done) -> Second | None:
        self.first_is_over.set()
        done = ctx.collect_events(ev, [Done] * 4)
        return None if done is None else Second(number=sum(each.number for each in done))

    @step
    async def finish(self, ctx: Context, ev: Second) -> StopEvent:
        self.begun["finish"] += 1
        if not self.is_repaired:
            raise ValueError("not repaired yet")
        return StopEvent(result=ev.number)


async def test_parts_that_had_not_ended_when_the_step_began_run_again(stack: Stack) -> None:
    workflow = OnePartFirst()
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack)
        workflow.is_repaired = True
        steps = await steps_of(stack, task_id)
        (first_work, *_) = [each for each in steps if each.step == "work"]
        before = Counter(workflow.begun)
        assert result_of(await end_of_retry(stack, task_id, first_work.step_id or "")) == 6
        assert workflow.begun - before == {**{f"work {number}": 1 for number in range(4)}, "finish": 1}

        collected = next(each for each in steps if each.step == "collect")
        before = Counter(workflow.begun)
        assert result_of(await end_of_retry(stack, task_id, collected.step_id or "")) == 6
        assert workflow.begun - before == {**{f"work {number}": 1 for number in range(1, 4)}, "finish": 1}


class Tries(Workflow):
    """Its second step fails twice, each time after it has changed the state."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.tries: Counter[str] = Counter()

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Second:
        await ctx.store.set("tries", 0)
        return Second(number=1)

    @step(retry_policy=retry_policy(wait=wait_fixed(0.01), stop=stop_after_attempt(3)))
    async def second(self, ctx: Context, ev: Second) -> StopEvent:
        self.tries["second"] += 1
        await ctx.store.set("tries", 1 + await ctx.store.get("tries"))
        if self.tries["second"] % 3 or self.tries["second"] == 3:
            raise ValueError("again")
        return StopEvent(result=await ctx.store.get("tries"))


async def test_a_fork_from_a_try_has_all_tries_again(stack: Stack) -> None:
    workflow = Tries()
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack)
        assert [each.step for each in await steps_of(stack, task_id)] == ["first", *["second"] * 3]
        assert result_of(await end_of_retry(stack, task_id, "1.2")) == 3
        workflow.tries["second"] = 5
        assert result_of(await end_of_retry(stack, task_id, "1.4")) == 3


class WaitsBeside(Workflow):
    """Waits for an answer for two seconds, while another step fails until it is repaired."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.is_repaired = False
        self.gate = asyncio.Event()

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Second | Third | None:
        ctx.send_event(Second(number=1))
        ctx.send_event(Third(number=1))
        return None

    @step
    async def wait(self, ctx: Context, ev: Second) -> StopEvent:
        try:
            answer = await ctx.wait_for_event(Answer, timeout=2.0)
        except TimeoutError:
            return StopEvent(result="too late")
        return StopEvent(result=answer.text)

    @step
    async def prepare(self, ctx: Context, ev: Third) -> Fourth:
        await self.gate.wait()
        return Fourth(number=1)

    @step
    async def work(self, ctx: Context, ev: Fourth) -> StopEvent | None:
        if not self.is_repaired:
            raise ValueError("not repaired yet")
        return None


async def test_a_wait_of_then_goes_on_where_it_was(embedded: Stack) -> None:
    """The time between the step and the retry does not count."""
    stack, workflow = embedded, WaitsBeside()
    async with stack.serving(stack.service(workflow)):
        task_id = await stack.submit()
        await until(lambda: has_questions(stack, task_id, 1))
        workflow.gate.set()
        assert (await stack.end(task_id)).status is TaskStatus.FAILED
        workflow.is_repaired = True
        ended = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() - ended > 2.5)
        step_id = await id_of(stack, task_id, "work")
        again = await retry(stack, task_id, step_id)
        await stack.send(again.task_id, Answer(text="in time"))
        assert result_of(await stack.end(again.task_id)) == "in time"
        assert result_of(await end_of_retry(stack, task_id, step_id)) == "too late"


# -- long runs


class Turn(Event):
    left: int


class Turns(Workflow):
    """Replaces its whole state in each second turn; the last one fails until it is repaired."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.is_repaired = False

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Turn:
        return Turn(left=300)

    @step
    async def turn(self, ctx: Context, ev: Turn) -> Turn | Last:
        if ev.left % 2:
            await ctx.store.set("turn", str(ev.left) * 1500)
        return Turn(left=ev.left - 1) if ev.left else Last()

    @step
    async def finish(self, ctx: Context, ev: Last) -> StopEvent:
        if not self.is_repaired:
            raise ValueError("not repaired yet")
        return StopEvent(result=await ctx.store.get("turn") == "1" * 1500)


async def test_of_a_long_run_the_last_steps_can_be_chosen(stack: Stack) -> None:
    workflow = Turns()
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack)
        workflow.is_repaired = True
        past = await stack.store.read(lambda tx: tx.runs.load_past(task_id))
        assert 0.8 * MAX_PAST_BYTES < sum(each.size for each in past) < 2 * MAX_PAST_BYTES
        reason, text = await refused(stack, task_id, "1.2")
        assert reason == "step"
        (nearest,) = re.findall(r"from which it can is step (1\.\d+) ", text)
        assert 100 < int(nearest.removeprefix("1.")) < 200
        for step_id in (nearest, "1.290", "1.301"):
            assert result_of(await end_of_retry(stack, task_id, step_id)) is True
        number = int(nearest.removeprefix("1.")) - 1
        assert (await refused(stack, task_id, f"1.{number}"))[0] == "step"


# -- refusals


async def test_a_step_that_does_not_exist_is_not_found(embedded: Stack) -> None:
    stack = embedded
    async with stack.serving(stack.service(FourSteps())):
        task_id = await failed(stack)
        for step_id in ("1.5", "2.1", "9.9"):
            with pytest.raises(StepNotFoundError, match=f"has no step {step_id} that has ended"):
                await retry(stack, task_id, step_id)
        for malformed in ("second", "1", "1.", ".1", "1.0", "1.2.3", "-1.2", "1.²", "LAST_STEP"):
            with pytest.raises(InvalidRequestError, match="the step_id of one of its steps"):
                await retry(stack, task_id, malformed)
        with pytest.raises(InvalidRequestError, match="only a retry from the start"):
            await retry(stack, task_id, "1.2", arguments={"number": 2})


async def test_a_run_that_is_not_stored_is_refused_with_the_reason(embedded: Stack) -> None:
    stack = embedded
    async with stack.serving(stack.service(Volatile())):
        assert (await refused(stack, await failed(stack), "1.2"))[0] == "volatile"
    async with stack.serving(stack.service(FourSteps(), durability="task")):
        assert (await refused(stack, await failed(stack), "1.2"))[0] == "durability"


class ThirdRenamed(FourSteps):
    """Its third step has another name."""

    @step
    async def third_anew(self, ctx: Context, ev: Third) -> Fourth:
        return Fourth(number=ev.number)

    third = None  # type: ignore[assignment]


async def test_a_fork_needs_a_version_that_fits_what_it_takes(embedded: Stack) -> None:
    stack = embedded
    async with stack.serving(stack.service(FourSteps())):
        task_id = await failed(stack)
    async with stack.serving(stack.service(ThirdRenamed())):
        reason, text = await refused(stack, task_id, "1.3")
        assert reason == "version"
        assert "cannot go on before step 1.3" in text


async def test_the_same_fork_again_is_the_same_task(embedded: Stack) -> None:
    stack, workflow = embedded, FourSteps()
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack)
        workflow.is_repaired = True
        for _ in range(2):
            again = await retry(stack, task_id, "1.3", task_id="again")
            assert result_of(await stack.end(again.task_id)) == ONCE_EACH
        with pytest.raises(RetryRefusedError, match="is another one"):
            await retry(stack, task_id, "1.2", task_id="again")
    assert workflow.begun["fourth"] == 2
