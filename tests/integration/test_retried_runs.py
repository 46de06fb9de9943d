"""Ended tasks that are tried again: which steps run again, and what a retry has of the first run."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from llama_deploy import Client
from llama_deploy.errors import (
    InvalidRequestError,
    SessionBusyError,
    TaskNotFoundError,
    TaskRemovedError,
)
from llama_deploy.types import SessionPolicy, TaskStatus
from llama_deploy.types.retention import PurgeRequest
from tests.integration.in_process import Stack, failure_of, result_of, running_stack, until
from tests.integration.repairable_workflows import (
    ALL,
    KEYS,
    ONCE_EACH,
    Answer,
    AsksTwice,
    FansOut,
    FourSteps,
    Fourth,
    Part,
    Renamed,
    Second,
    Volatile,
    end_of_retry,
    failed,
    has_status,
    refused,
    retry,
)


class Patient(Workflow):
    """Its second step may be tried three times, and waits for an answer for a while."""

    def __init__(self, *, fails: int = 0, timeout: float | None = None) -> None:
        super().__init__(timeout=timeout)
        self.left = Counter(fails=fails)
        self.seconds = 0.0

    @step
    async def first(self, ev: StartEvent) -> Second:
        return Second(number=1)

    @step(retry_policy=retry_policy(wait=wait_fixed(0.01), stop=stop_after_attempt(3)))
    async def second(self, ev: Second) -> StopEvent:
        await asyncio.sleep(self.seconds)
        self.left["fails"] -= 1
        if self.left["fails"] >= 0:
            raise ValueError("again")
        return StopEvent(result="at last")


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


# -- which steps run again


@pytest.mark.parametrize("keys", [(), KEYS], ids=["plain", "signed"])
async def test_a_retry_from_the_last_step_runs_no_finished_step_again(
    stack: Stack, keys: list[SecretStr]
) -> None:
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow, state_keys=list(keys))):
        task_id = await failed(stack, number=5)
        workflow.is_repaired = True
        again = await retry(stack, task_id)
        assert again.retry_of == task_id
        assert result_of(await stack.end(again.task_id)) == [7, *ONCE_EACH[1:]]
    assert workflow.begun == {"first": 1, "second": 1, "third": 1, "fourth": 2}
    assert (await stack.plane.tasks.get(task_id)).status is TaskStatus.FAILED


async def test_a_retry_from_the_start_runs_all_steps(stack: Stack) -> None:
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack, number=5)
        workflow.is_repaired = True
        assert result_of(await end_of_retry(stack, task_id, "start")) == [7, *ONCE_EACH[1:]]
        other = await end_of_retry(stack, task_id, "start", arguments={"number": 10})
        assert result_of(other) == [12, ALL * 2, [2] * 8], "it begins with the state of the other retry"
    assert workflow.begun == {"first": 3, "second": 3, "third": 3, "fourth": 3}


async def test_a_retry_can_be_retried(stack: Stack) -> None:
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow, state_keys=KEYS)):
        task_id = await failed(stack)
        for _ in range(2):
            again = await retry(stack, task_id)
            assert (await stack.end(again.task_id)).status is TaskStatus.FAILED
            task_id = again.task_id
        workflow.is_repaired = True
        assert result_of(await end_of_retry(stack, task_id)) == ONCE_EACH
    assert workflow.begun == {"first": 1, "second": 1, "third": 1, "fourth": 4}


async def test_a_retry_that_is_handed_back_goes_on_elsewhere(stack: Stack) -> None:
    """What the retry has written itself, such as a snapshot at the end of a drain, follows the copy."""
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow, state_keys=KEYS)):
        task_id = await failed(stack)
        workflow.is_repaired = True
        workflow.gate.clear()
        again = await retry(stack, task_id)
        await until(lambda: workflow.begun["fourth"] == 2)
    workflow.gate.set()
    async with stack.serving(stack.service(workflow, state_keys=KEYS)):
        assert result_of(await stack.end(again.task_id)) == ONCE_EACH
    assert workflow.begun == {"first": 1, "second": 1, "third": 1, "fourth": 3}


async def test_parts_of_a_fan_out_that_ended_with_the_failure_do_not_run_again(stack: Stack) -> None:
    workflow = FansOut()
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack)
        workflow.is_repaired = True
        assert result_of(await end_of_retry(stack, task_id)) == list(range(8))
    assert workflow.begun == {**dict.fromkeys(range(7), 1), 7: 2}


# -- what is used up


async def test_a_step_that_has_used_up_its_tries_gets_them_all_again(stack: Stack) -> None:
    workflow = Patient(fails=3)
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack)
        workflow.left["fails"] = 2
        assert result_of(await end_of_retry(stack, task_id)) == "at last"


async def test_the_time_limit_begins_again(stack: Stack) -> None:
    workflow = Patient(timeout=1.0)
    workflow.seconds = 60.0
    async with stack.serving(stack.service(workflow)):
        view = await stack.run()
        assert view.status is TaskStatus.TIMED_OUT
        workflow.seconds = 0.3
        again = await retry(stack, view.task_id)
        assert again.running_seconds == 0
        assert result_of(await stack.end(again.task_id)) == "at last"


# -- events that were sent


async def test_an_answer_that_was_taken_stays_taken(stack: Stack) -> None:
    workflow = AsksTwice()
    async with stack.serving(stack.service(workflow, idle_timeout=0.0)):
        task_id = await stack.submit()
        for text in ("ann", "bob"):
            await stack.send(task_id, Answer(text=text))
        assert failure_of(await stack.end(task_id))[1] == "bob"
        workflow.is_repaired = True
        again = await retry(stack, task_id)
        # The second answer was taken by the step that has failed, and the run has kept it.
        assert result_of(await stack.end(again.task_id)) == ["ann", "bob"]


async def test_a_run_that_waited_when_it_was_cancelled_waits_again(stack: Stack) -> None:
    workflow = AsksTwice()
    workflow.is_repaired = True
    async with stack.serving(stack.service(workflow, idle_timeout=0.0)):
        task_id = await stack.submit()
        await stack.send(task_id, Answer(text="ann"))
        await until(lambda: has_status(stack, task_id, TaskStatus.WAITING))
        await stack.plane.tasks.cancel(task_id)
        again = await retry(stack, task_id)
        await until(lambda: has_status(stack, again.task_id, TaskStatus.WAITING))
        await stack.send(again.task_id, Answer(text="zoe"))
        assert result_of(await stack.end(again.task_id)) == ["ann", "zoe"]


# -- idempotency


async def test_the_same_retry_again_is_the_same_task(stack: Stack) -> None:
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack, number=1)
        workflow.is_repaired = True
        same = [retry(stack, task_id, task_id="again") for _ in range(8)]
        assert {task.task_id for task in await asyncio.gather(*same)} == {"again"}
        await stack.end("again")
        assert (await retry(stack, task_id, task_id="again")).task_id == "again"
        for other in (
            await refused(stack, task_id, "start", task_id="again"),
            await refused(stack, task_id, task_id=task_id),
            await refused(stack, "again", task_id="again"),
        ):
            assert other[0] == "id"
        begun = workflow.begun["fourth"]
        changed: dict[str, Any] = {"origin": "start", "arguments": {"number": 2}, "task_id": "changed"}
        await retry(stack, task_id, **changed)
        await retry(stack, task_id, **changed)
        assert (await refused(stack, task_id, **{**changed, "arguments": {"number": 3}}))[0] == "id"
        await stack.end("changed")
    assert workflow.begun["fourth"] == begun + 1


# -- what is refused


async def test_an_open_task_is_not_retried(stack: Stack) -> None:
    async with stack.serving(stack.service(AsksTwice())):
        task_id = await stack.submit()
        for origin in ("start", "last_step"):
            reason, text = await refused(stack, task_id, origin)
            assert reason == "open"
            assert "has not ended" in text
        with pytest.raises(TaskNotFoundError):
            await retry(stack, "unknown")


async def test_a_task_without_a_journal_is_only_retried_from_its_start(stack: Stack) -> None:
    async with (
        stack.serving(stack.service(FourSteps(), durability="task")),
        stack.serving(stack.service(Volatile(), "volatile")),
    ):
        reason, text = await refused(stack, await failed(stack))
        assert (reason, "durability" in text) == ("durability", True)
        view = await stack.run("volatile")
        reason, text = await refused(stack, view.task_id)
        assert (reason, "live" in text) == ("volatile", True)
        assert (await retry(stack, view.task_id, "start")).status is TaskStatus.QUEUED


async def test_a_task_that_has_succeeded_is_only_retried_from_its_start(stack: Stack) -> None:
    workflow = FourSteps()
    workflow.is_repaired = True
    async with stack.serving(stack.service(workflow)):
        view = await stack.run()
        assert (await refused(stack, view.task_id))[0] == "succeeded"
        assert result_of(await end_of_retry(stack, view.task_id, "start")) == [3, ALL * 2, [2] * 8]


async def test_other_arguments_are_for_the_start_only(stack: Stack) -> None:
    async with stack.serving(stack.service(FourSteps())):
        task_id = await failed(stack)
        with pytest.raises(InvalidRequestError, match="only a retry from the start"):
            await retry(stack, task_id, arguments={"number": 2})


async def test_a_task_that_failed_in_its_first_step_goes_on_from_there(stack: Stack) -> None:
    """Nothing was finished, so both places are the same."""
    workflow = Patient(fails=3)
    async with stack.serving(stack.service(workflow)):
        session = await stack.session(SessionPolicy.REJECT)
        task_id = (await stack.end(await stack.submit("service", session))).task_id
        again = await retry(stack, task_id)
        assert again.session_id == session
        assert result_of(await stack.end(again.task_id)) == "at last"


async def test_the_policy_of_the_session_applies(stack: Stack) -> None:
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow)):
        session = await stack.session(SessionPolicy.REJECT)
        task_id = (await stack.end(await stack.submit("service", session))).task_id
        workflow.is_repaired = True
        workflow.gate.clear()
        again = await retry(stack, task_id)
        with pytest.raises(SessionBusyError):
            await retry(stack, task_id)
        rows = await stack.store.read(lambda tx: tx.tasks.of_sessions([session]))
        assert len(rows) == 2
        workflow.gate.set()
        await stack.end(again.task_id)


# -- versions


class Extended(FourSteps):
    """A version with a step more after the fourth, which is repaired."""

    @step
    async def fourth(self, ctx: Context, ev: Fourth) -> Part:  # type: ignore[override]
        self.begun["fourth"] += 1
        return Part(number=ev.number)

    @step
    async def fifth(self, ctx: Context, ev: Part) -> StopEvent:
        self.begun["fifth"] += 1
        return StopEvent(result=[ev.number, await ctx.store.get("counts")])


async def test_a_retry_that_no_living_version_fits_is_refused_with_the_step(stack: Stack) -> None:
    async with stack.serving(stack.service(FourSteps())):
        task_id = await failed(stack)
    newer = Renamed()
    async with stack.serving(stack.service(newer)):
        reason, text = await refused(stack, task_id)
        assert reason == "version"
        assert "step 'fourth' does not exist in this version" in text
        assert result_of(await end_of_retry(stack, task_id, "start")) == 3
    assert newer.begun == {"first": 1, "second": 1, "third": 1, "last": 1}


async def test_a_retry_goes_on_with_a_new_version_that_fits(stack: Stack) -> None:
    async with stack.serving(stack.service(FourSteps())):
        task_id = await failed(stack)
    newer = Extended()
    async with stack.serving(stack.service(newer)):
        assert result_of(await end_of_retry(stack, task_id)) == [3, ALL[:3]]
    assert newer.begun == {"fourth": 1, "fifth": 1}


async def test_in_a_rolling_upgrade_a_retry_goes_to_the_version_that_fits(stack: Stack) -> None:
    older, newer = FourSteps(), Renamed()
    async with stack.serving(stack.service(older)):
        task_id = await failed(stack)
        older.is_repaired = True
        async with stack.serving(stack.service(newer)):
            retried = [await retry(stack, task_id) for _ in range(6)]
            ends = [await stack.end(task.task_id) for task in retried]
    assert [result_of(end) for end in ends] == [ONCE_EACH] * 6
    assert older.begun["fourth"] == 7
    assert not newer.begun


async def test_a_retry_waits_for_an_instance_if_none_is_alive(stack: Stack) -> None:
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack)
    workflow.is_repaired = True
    again = await retry(stack, task_id)
    assert again.status is TaskStatus.QUEUED
    async with stack.serving(stack.service(workflow)):
        assert result_of(await stack.end(again.task_id)) == ONCE_EACH


# -- time limits of waits


class Impatient(Workflow):
    """Waits for an answer for two seconds."""

    @step
    async def first(self, ev: StartEvent) -> Second:
        return Second(number=1)

    @step
    async def wait(self, ctx: Context, ev: Second) -> StopEvent:
        try:
            answer = await ctx.wait_for_event(Answer, timeout=2.0)
        except TimeoutError:
            return StopEvent(result="too late")
        return StopEvent(result=answer.text)


@pytest.mark.parametrize("idle_timeout", [0.0, 60.0], ids=["parked", "in memory"])
async def test_a_wait_does_not_count_the_time_between_end_and_retry(
    stack: Stack, idle_timeout: float
) -> None:
    async with stack.serving(stack.service(Impatient(), idle_timeout=idle_timeout)):
        task_id = await stack.submit()
        await until(lambda: has_status(stack, task_id, TaskStatus.WAITING))
        await until(lambda: has_journal(stack, task_id))
        await stack.plane.tasks.cancel(task_id)
        assert (await stack.end(task_id)).status is TaskStatus.CANCELLED
        ended = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() - ended > 2.5)
        again = await retry(stack, task_id)
        await stack.send(again.task_id, Answer(text="in time"))
        assert result_of(await stack.end(again.task_id)) == "in time"
        late = await retry(stack, task_id)
        assert result_of(await stack.end(late.task_id)) == "too late"


async def has_journal(stack: Stack, task_id: str) -> bool:
    return (await stack.store.read(lambda tx: tx.tasks.load([task_id])))[task_id].has_run


# -- with questions and retention


async def test_a_question_that_a_step_waits_for_comes_into_the_inbox_again(stack: Stack) -> None:
    workflow = AsksTwice()
    workflow.is_repaired = True
    async with (
        stack.serving(stack.service(workflow, idle_timeout=0.0)),
        Client(stack.server.config.url) as client,
    ):
        task_id = await stack.submit()
        await stack.send(task_id, Answer(text="ann"))
        await until(lambda: has_status(stack, task_id, TaskStatus.WAITING))
        await stack.plane.tasks.cancel(task_id)
        again = await retry(stack, task_id)
        await until(lambda: has_question(client, again.task_id))
        (question,) = (await client.inbox.page()).items
        assert (question.task_id, question.step, question.prompt) == (again.task_id, "ask_again", {})
        await client.inbox.answer(question.question_id, {"text": "zoe"})
        assert result_of(await stack.end(again.task_id)) == ["ann", "zoe"]


async def has_question(client: Client, task_id: str) -> bool:
    return [question.task_id for question in (await client.inbox.page()).items] == [task_id]


async def test_a_retry_under_the_id_of_a_removed_task_does_not_run(stack: Stack) -> None:
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack)
        workflow.is_repaired = True
        await stack.end((await retry(stack, task_id, task_id="again")).task_id)
        await stack.plane.storage.purge(PurgeRequest(status=["succeeded"], older_than_seconds=0))
        with pytest.raises(TaskRemovedError):
            await retry(stack, task_id, task_id="again")
    assert workflow.begun["fourth"] == 2
