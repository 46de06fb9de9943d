"""Lists of sessions, their histories, and sessions that begin with the state of another one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.client import Client
from llama_deploy.control_plane.decisions.state_versions import KEPT_STATES
from llama_deploy.control_plane.requests.sessions import session_lists
from llama_deploy.errors import (
    ConflictError,
    InvalidCursorError,
    InvalidRequestError,
    SessionNotFoundError,
    StateConflictError,
    StateNotKeptError,
    TaskNotFoundError,
)
from llama_deploy.types import SessionFork, SessionPolicy, TaskStatus
from tests.integration.in_process import Stack, result_of, running_stack


class Seen(BaseModel):
    words: list[str] = []


class Collecting(Workflow):
    @step
    async def collect(self, ctx: Context[Seen], ev: StartEvent) -> StopEvent:
        async with ctx.store.edit_state() as seen:
            if ev.get("word"):
                seen.words.append(ev.word)
            if ev.get("fail"):
                raise ValueError("this word is not allowed")
        return StopEvent(result=(await ctx.store.get_state()).words)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    async with Client(stack.server.config.url, timeout=20) as client:
        yield client


# -- lists


async def test_sessions_are_listed_with_times_and_tags_the_newest_first(client: Client) -> None:
    made = [await client.core.sessions.create(tags=["a", "b"] if n % 2 else []) for n in range(7)]
    found, cursor = [], ""
    while page := await client.core.sessions.page(limit=3, cursor=cursor):
        found += page.items
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    assert {each.session_id for each in found} == {session.id for session in made}
    assert [each.session_id for each in found] == sorted((s.id for s in made), reverse=True)
    assert sorted(len(each.tags) for each in found) == [0, 0, 0, 0, 2, 2, 2]
    assert all(each.created_at == each.state_changed_at and not each.state_version for each in found)


@pytest.mark.parametrize("order", ["newest", "oldest"])
async def test_sessions_are_found_by_tag(client: Client, order: Any) -> None:
    made = [(await client.core.sessions.create(tags=[f"t{n % 2}", "all"])).id for n in range(6)]
    page = await client.core.sessions.page(tag="t1", order=order, limit=2)
    rest = await client.core.sessions.page(tag="t1", order=order, limit=2, cursor=page.next_cursor or "")
    ids = [each.session_id for each in [*page.items, *rest.items]]
    assert ids == sorted((made[n] for n in (1, 3, 5)), reverse=order == "newest")
    assert rest.next_cursor is None
    assert (await client.core.sessions.page(tag="unknown")).items == []


async def test_a_deleted_session_is_not_found_by_its_tag(client: Client) -> None:
    session = await client.core.sessions.create(tags=["t"])
    await client.core.sessions.delete(session.id)
    assert (await client.core.sessions.page(tag="t")).items == []
    assert (await client.core.sessions.page()).items == []


async def test_a_cursor_of_another_list_is_refused(client: Client) -> None:
    for _ in range(3):
        await client.core.sessions.create(tags=["t"])
    cursor = (await client.core.sessions.page(tag="t", limit=1)).next_cursor or ""
    with pytest.raises(InvalidCursorError):
        await client.core.sessions.page(cursor=cursor)
    with pytest.raises(InvalidCursorError):
        await client.core.sessions.page(tag="t", order="oldest", cursor=cursor)
    with pytest.raises(InvalidCursorError):
        await client.core.sessions.page(cursor="garbage")


@pytest.mark.parametrize("tags", ["text", [""], ["a\nb"], ["x" * 300], [f"t{n}" for n in range(21)]])
async def test_what_cannot_be_a_tag_is_refused(client: Client, tags: Any) -> None:
    with pytest.raises(InvalidRequestError):
        await client.core.sessions.create(tags=tags)


# -- histories


async def test_the_history_has_arguments_results_and_errors_in_order(stack: Stack, client: Client) -> None:
    session = await client.core.sessions.create()
    async with stack.serving(stack.service(Collecting)):
        result_of(await stack.run("service", session.id, word="a"))
        await stack.run("service", session.id, fail=True)
        result_of(await stack.run("service", session.id, word="b"))
    history = await session.history()
    assert [item.arguments for item in history] == [{"word": "a"}, {"fail": True}, {"word": "b"}]
    assert [item.status for item in history] == [
        TaskStatus.SUCCEEDED,
        TaskStatus.FAILED,
        TaskStatus.SUCCEEDED,
    ]
    assert [item.value for item in history] == [["a"], None, ["a", "b"]]
    error = history[1].error
    assert error is not None
    assert error.message == "this word is not allowed"


async def test_a_page_of_a_history_is_bounded_in_bytes(
    stack: Stack, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_lists, "_MAX_PAGE_CHARACTERS", 10_000)
    session = await client.core.sessions.create()
    async with stack.serving(stack.service(Collecting)):
        for letter in "abcdef":
            result_of(await stack.run("service", session.id, other=letter * 4_000))
    page = await stack.plane.session_lists.history(session.id, cursor=None, limit=100)
    assert len(page.items) == 2
    assert [item.arguments["other"][0] for item in await session.history() if item.arguments] == [*"abcdef"]


async def test_an_unknown_session_has_no_history(client: Client) -> None:
    session = await client.core.sessions.create()
    assert await session.history() == []
    await client.core.sessions.delete(session.id)
    with pytest.raises(SessionNotFoundError):
        await session.history()


# -- forks


@pytest.mark.parametrize("policy", [SessionPolicy.ENQUEUE, SessionPolicy.PARALLEL_WHILE_WAITING])
@pytest.mark.parametrize("keys", [[], ["a key of sufficient length"]], ids=["plain", "signed"])
async def test_a_fork_continues_with_the_state_after_a_task(
    stack: Stack, client: Client, policy: SessionPolicy, keys: list[str]
) -> None:
    session = await client.core.sessions.create(policy=policy, tags=["t"])
    async with stack.serving(stack.service(Collecting, state_keys=keys)):
        tasks = [await stack.run("service", session.id, word=word) for word in "abc"]
        fork = await session.fork(tasks[1].task_id)
        assert result_of(await stack.run("service", fork.id, word="x")) == ["a", "b", "x"]
        second = await fork.fork()
        assert result_of(await stack.run("service", second.id, word="y")) == ["a", "b", "x", "y"]
        assert result_of(await stack.run("service", session.id, word="d")) == ["a", "b", "c", "d"]
        assert len(await fork.history()) == 1
    listed = {each.session_id: each for each in (await client.core.sessions.page(tag="t")).items}
    assert (listed[fork.id].forked_from, listed[fork.id].forked_at) == (session.id, tasks[1].task_id)
    assert listed[fork.id].policy is policy


async def test_each_task_of_a_long_session_can_be_forked_at_or_the_error_says_why_not(
    stack: Stack, client: Client
) -> None:
    session = await client.core.sessions.create()
    words = [f"w{n}" for n in range(KEPT_STATES + 5)]
    async with stack.serving(stack.service(Collecting)):
        tasks = [await stack.run("service", session.id, word=word) for word in words]
        with pytest.raises(StateNotKeptError, match="fork it after a later task"):
            await session.fork(tasks[3].task_id)
        fork = await session.fork(tasks[4].task_id)
        assert result_of(await stack.run("service", fork.id)) == words[:5]


async def test_what_cannot_be_forked_is_refused(stack: Stack, client: Client) -> None:
    session, other = await client.core.sessions.create(), await client.core.sessions.create()
    async with stack.serving(stack.service(Collecting)):
        task = await stack.run("service", session.id, word="a")
        with pytest.raises(TaskNotFoundError):
            await other.fork(task.task_id)
        with pytest.raises(TaskNotFoundError):
            await session.fork("unknown")
    waiting = await stack.submit("service", session.id, word="b")
    with pytest.raises(ConflictError, match="has ended"):
        await session.fork(waiting)
    with pytest.raises(InvalidRequestError, match="policy"):
        await session.fork(policy="unknown")


async def test_a_fork_that_is_asked_for_twice_is_made_once(stack: Stack) -> None:
    session = await stack.session()
    first = await stack.plane.session_forks.fork(session, SessionFork(session_id="new"))
    await stack.plane.sessions.merge_state(session, {"key": 1})
    assert await stack.plane.session_forks.fork(session, SessionFork(session_id="new")) == first
    with pytest.raises(ConflictError, match="is not this fork"):
        await stack.plane.session_forks.fork("new", SessionFork(session_id=session))


# -- states


async def test_a_merge_may_ask_for_the_version_that_was_read(client: Client) -> None:
    session = await client.core.sessions.create()
    read = await session.update_state({"a": 1}, version=0)
    await session.update_state({"b": 2}, version=read.version)
    with pytest.raises(StateConflictError) as conflict:
        await session.update_state({"a": 3}, version=read.version)
    assert (conflict.value.expected, conflict.value.actual) == (1, 2)
    assert (await session.get_state()).state == {"a": 1, "b": 2}


@pytest.mark.parametrize("policy", [SessionPolicy.ENQUEUE, SessionPolicy.PARALLEL])
async def test_what_a_workflow_keeps_can_be_read(stack: Stack, client: Client, policy: SessionPolicy) -> None:
    session = await client.core.sessions.create(policy=policy)
    assert await session.get_workflow_state() == {}
    async with stack.serving(stack.service(Collecting, state_keys=["a key of sufficient length"])):
        result_of(await stack.run("service", session.id, word="a"))
    (name,) = found = await session.get_workflow_state()
    assert name.endswith(".Seen")
    assert "words" in str(found[name])
    assert (await session.get_state()).state == {}
