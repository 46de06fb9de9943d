"""What tasks that run at the same time leave in the state of their session."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.errors import InvalidRequestError, SessionBusyError
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.types import SessionPolicy, TaskStatus
from tests.figures import Tell
from tests.integration.in_process import Stack, result_of, running_stack, until

KEYS = ["a key of sufficient length"]
settings = pytest.mark.parametrize("settings", [{}, {"state_keys": KEYS}], ids=["plain", "signed"])


class Meeting(Workflow):
    """Its runs wait for each other before they change the state."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.barrier = asyncio.Barrier(size)

    async def meet(self) -> None:
        await self.barrier.wait()


class Keyed(Meeting):
    @step
    async def change(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await self.meet()
        if ev.get("clear"):
            await ctx.store.clear()
        async with ctx.store.edit_state() as state:
            state[ev.key] = ev.get("value", ev.key)
        return StopEvent(result=None)


class Reading(Workflow):
    @step
    async def read(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=dict((await ctx.store.get_state()).items()))


class Pair(BaseModel):
    first: str = ""
    second: str = ""
    third: list[str] = []


class Typed(Meeting):
    @step
    async def change(self, ctx: Context[Pair], ev: StartEvent) -> StopEvent:
        await self.meet()
        async with ctx.store.edit_state() as state:
            if ev.get("field"):
                setattr(state, ev.field, ev.field)
        return StopEvent(result=(await ctx.store.get_state()).model_dump())


class Counting(Workflow):
    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        async with ctx.store.edit_state() as state:
            await asyncio.sleep(0)
            state["count"] = state.get("count", 0) + 1
        return StopEvent(result=state["count"])


class Asking(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("asked", 1)
        await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent())
        await ctx.store.set("answered", 1)
        return StopEvent(result=None)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def read(stack: Stack, session: str, **settings: Any) -> Any:
    async with stack.serving(stack.service(Reading, "reading", **settings)):
        return result_of(await stack.run("reading", session))


@settings
async def test_tasks_that_change_different_keys_keep_all(stack: Stack, settings: dict[str, Any]) -> None:
    session = await stack.session(SessionPolicy.PARALLEL)
    keys = [f"key {number}" for number in range(20)]
    async with stack.serving(stack.service(Keyed(20), max_concurrent_tasks=20, **settings)):
        tasks = [await stack.submit("service", session, key=key) for key in keys]
        for task in tasks:
            result_of(await stack.end(task))
    assert await read(stack, session, **settings) == {key: key for key in keys}


async def test_a_key_that_is_removed_stays_removed(stack: Stack) -> None:
    session = await stack.session(SessionPolicy.PARALLEL)
    async with stack.serving(stack.service(Keyed())):
        for arguments in ({"key": "a"}, {"key": "b"}, {"key": "c", "clear": True}):
            result_of(await stack.run("service", session, **arguments))
    assert await read(stack, session) == {"c": "c"}


async def test_fields_of_a_typed_state_are_keys_too(stack: Stack) -> None:
    session = await stack.session(SessionPolicy.PARALLEL)
    workflow = Typed(2)
    async with stack.serving(stack.service(workflow)):
        tasks = [await stack.submit("service", session, field=field) for field in ("first", "second")]
        for task in tasks:
            result_of(await stack.end(task))
        workflow.barrier = asyncio.Barrier(1)
        found = result_of(await stack.run("service", session))
    assert found == {"first": "first", "second": "second", "third": []}


async def test_an_overwritten_key_is_logged_once_with_both_tasks(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    session = await stack.session(SessionPolicy.PARALLEL)
    async with stack.serving(stack.service(Keyed(3))):
        tasks = [
            await stack.submit("service", session, key="shared", value=number, other=key)
            for number, key in enumerate("abc")
        ]
        for task in tasks:
            result_of(await stack.end(task))
    logged = [record for record in caplog.records if getattr(record, "action", "") == "state_overwritten"]
    assert len(logged) == 1
    text = logged[0].getMessage()
    assert "ctx.store['shared']" in text
    assert sum(task in text for task in tasks) == 2
    assert "enqueue" in text


async def test_tasks_one_after_another_overwrite_nothing(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    session = await stack.session(SessionPolicy.PARALLEL)
    async with stack.serving(stack.service(Counting())):
        assert [result_of(await stack.run("service", session)) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert "overwritten" not in caplog.text


async def test_a_hundred_counting_tasks(stack: Stack, caplog: pytest.LogCaptureFixture, tell: Tell) -> None:
    counts = {}
    async with stack.serving(stack.service(Counting)):
        for policy in (SessionPolicy.PARALLEL, SessionPolicy.ENQUEUE):
            session = await stack.session(policy)
            tasks = [await stack.submit("service", session) for _ in range(100)]
            for task in tasks:
                result_of(await stack.end(task))
            counts[policy.value] = (await read(stack, session))["count"]
    tell(f"100 tasks of a session that count to 100: {counts}")
    assert counts["enqueue"] == 100
    assert ("overwritten" in caplog.text) == (counts["parallel"] < 100)


async def test_a_run_that_was_parked_does_not_overwrite_what_others_have_changed_since(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    session = await stack.session(SessionPolicy.PARALLEL)
    async with stack.serving(stack.service(Keyed(), "keyed")):
        result_of(await stack.run("keyed", session, key="a", value="old"))
        async with stack.serving(stack.service(Asking, idle_timeout=0.05)):
            asking = await stack.submit("service", session)
            await until_parked(stack, asking)
        result_of(await stack.run("keyed", session, key="a", value="new"))
        result_of(await stack.run("keyed", session, key="b"))
    async with stack.serving(stack.service(Asking)):
        await stack.send(asking, HumanResponseEvent())
        result_of(await stack.end(asking))
    assert await read(stack, session) == {"a": "new", "b": "b", "asked": 1, "answered": 1}
    assert "overwritten" not in caplog.text


async def until_parked(stack: Stack, task: str) -> None:
    async def is_parked() -> bool:
        return await stack.is_parked(task)

    await until(is_parked)


async def test_other_policies_store_one_value(stack: Stack) -> None:
    session = await stack.session()
    async with stack.serving(stack.service(Keyed())):
        result_of(await stack.run("service", session, key="a"))
        result_of(await stack.run("service", session, key="b"))
    assert len(json.loads(text_of((await stack.stored(session)).state))) == 1


async def test_a_task_that_waits_for_a_person_lets_the_next_one_run(stack: Stack) -> None:
    session = await stack.session(SessionPolicy.PARALLEL_WHILE_WAITING)
    async with (
        stack.serving(stack.service(Keyed(), "keyed")),
        stack.serving(stack.service(Asking, idle_timeout=0.05)),
    ):
        asking = await stack.submit("service", session)
        following = await stack.submit("keyed", session, key="a")
        result_of(await stack.end(following))
        await until_parked(stack, asking)
        result_of(await stack.run("keyed", session, key="b"))
        await stack.send(asking, HumanResponseEvent())
        result_of(await stack.end(asking))
    assert await read(stack, session) == {"a": "a", "b": "b", "asked": 1, "answered": 1}


@pytest.mark.parametrize("durability", ["step", "task"])
async def test_a_task_that_waits_in_memory_lets_the_next_one_run(stack: Stack, durability: str) -> None:
    session = await stack.session(SessionPolicy.PARALLEL_WHILE_WAITING)
    async with (
        stack.serving(stack.service(Keyed(), "keyed")),
        stack.serving(stack.service(Asking, idle_timeout=None, durability=durability)),
    ):
        asking = await stack.submit("service", session)
        following = await stack.submit("keyed", session, key="a")
        result_of(await stack.end(following))
        await until_waiting(stack, asking)
        result_of(await stack.run("keyed", session, key="b"))
        await stack.send(asking, HumanResponseEvent())
        result_of(await stack.end(asking))
    assert await read(stack, session) == {"a": "a", "b": "b", "asked": 1, "answered": 1}


async def until_waiting(stack: Stack, task: str) -> None:
    async def is_waiting() -> bool:
        return (await stack.plane.task_lists.details(task)).status is TaskStatus.WAITING

    await until(is_waiting)


async def test_with_enqueue_a_task_that_waits_for_a_person_holds_the_next_one(stack: Stack) -> None:
    session = await stack.session()
    async with (
        stack.serving(stack.service(Keyed(), "keyed")),
        stack.serving(stack.service(Asking, idle_timeout=0.05)),
    ):
        asking = await stack.submit("service", session)
        following = await stack.submit("keyed", session, key="a")
        await until_parked(stack, asking)
        assert (await stack.end(following, wait=0)).status is TaskStatus.PENDING
        await stack.send(asking, HumanResponseEvent())
        result_of(await stack.end(following))


@pytest.mark.parametrize("policy", SessionPolicy)
async def test_a_task_may_ask_to_be_rejected_or_to_interrupt_in_any_session(
    stack: Stack, policy: SessionPolicy
) -> None:
    session = await stack.session(policy)
    async with stack.serving(stack.service(Asking, idle_timeout=0.05)):
        asking = await stack.submit("service", session)
        await until_parked(stack, asking)
        with pytest.raises(SessionBusyError, match=asking):
            await stack.submit("service", session, session_policy=SessionPolicy.REJECT)
        following = await stack.submit("service", session, session_policy=SessionPolicy.INTERRUPT)
        assert (await stack.end(asking)).status is TaskStatus.CANCELLED
        await until_parked(stack, following)


@pytest.mark.parametrize("policy", SessionPolicy)
@pytest.mark.parametrize("asked", SessionPolicy)
async def test_a_task_may_not_ask_for_what_its_session_cannot_do(
    stack: Stack, policy: SessionPolicy, asked: SessionPolicy
) -> None:
    session = await stack.session(policy)
    async with stack.serving(stack.service(Keyed())):
        if asked in (policy, SessionPolicy.REJECT, SessionPolicy.INTERRUPT):
            result_of(await stack.run("service", session, key="a", session_policy=asked))
        else:
            with pytest.raises(InvalidRequestError, match=f"cannot have the policy '{asked.value}'"):
                await stack.submit("service", session, key="a", session_policy=asked)


async def test_a_session_that_begins_with_a_task_has_the_policy_of_the_task_or_of_its_service(
    stack: Stack,
) -> None:
    parallel, enqueue = SessionPolicy.PARALLEL, SessionPolicy.ENQUEUE
    async with (
        stack.serving(stack.service(Keyed(), "plain")),
        stack.serving(stack.service(Keyed(), "parallel", session_policy=parallel)),
    ):
        found = []
        for name, asked in [("plain", None), ("plain", parallel), ("parallel", None), ("parallel", enqueue)]:
            task = await stack.end(await stack.submit(name, key="a", session_policy=asked))
            found.append((await stack.stored(task.session_id)).policy)
    assert found == [enqueue, parallel, parallel, enqueue]
