"""Tasks as documents, and their journals replayed against other code."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import Client
from llama_deploy.control_plane.requests.tasks import export_requests
from llama_deploy.errors import (
    ConflictError,
    ExportFormatError,
    InvalidRequestError,
    PayloadTooLargeError,
    TaskNotFoundError,
)
from llama_deploy.testing.replays import replay
from llama_deploy.types import TaskStatus
from llama_deploy.types.retries import TaskRetry
from llama_deploy.types.task_export import TaskExport
from tests.integration.in_process import Stack, running_stack, until
from tests.integration.repairable_workflows import (
    ONCE_EACH,
    Answer,
    AsksTwice,
    FansOut,
    FourSteps,
    Fourth,
    Renamed,
    Second,
    Third,
    failed,
    has_status,
)


class RenamedSecond(FourSteps):
    """A version in which the second step has another name."""

    second = None  # type: ignore[assignment]

    @step
    async def middle(self, ev: Second) -> Third:
        return Third(number=ev.number)


class OtherWay(Workflow):
    """A version whose steps take each other's events."""

    @step
    async def first(self, ev: StartEvent) -> Second | Third:
        return Second(number=1)

    @step
    async def third(self, ev: Second) -> Fourth:
        return Fourth(number=1)

    @step
    async def second(self, ev: Third) -> Fourth:
        return Fourth(number=1)

    @step
    async def fourth(self, ev: Fourth) -> StopEvent:
        return StopEvent(result=1)


class ThreeNames(AsksTwice):
    """A version in which the step that waits has another name."""

    ask_again = None  # type: ignore[assignment]

    @step
    async def ask_once_more(self, ctx: Context, ev: Second) -> StopEvent:
        return StopEvent(result=(await ctx.wait_for_event(Answer)).text)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def exported(stack: Stack, task_id: str) -> TaskExport:
    async with Client(stack.server.config.url) as client:
        return await client.tasks.export(task_id)


async def export_of_failed(stack: Stack, workflow: Workflow, **settings: Any) -> TaskExport:
    async with stack.serving(stack.service(workflow, **settings)):
        return await exported(stack, await failed(stack))


async def test_a_document_has_all_that_is_stored_of_a_task(stack: Stack) -> None:
    async with stack.serving(stack.service(AsksTwice(), idle_timeout=0.0)):
        task_id = await stack.submit("service", number=4)
        await stack.send(task_id, Answer(text="ann"))
        await until(lambda: has_status(stack, task_id, TaskStatus.WAITING))
        waiting = await exported(stack, task_id)
        await stack.send(task_id, Answer(text="bob"))
        assert (await stack.end(task_id)).status is TaskStatus.FAILED
        document = await exported(stack, task_id)
    assert (waiting.task.status, waiting.run is None) == (TaskStatus.WAITING, False)
    assert document.format == 1
    assert json.loads(document.input) == document.task.arguments == {"number": 4}
    assert document.task.error is not None
    assert document.task.error.message == "bob"
    assert [(entry.seq, entry.consumed) for entry in document.inbox] == [(1, True), (2, True)]
    assert [event.index for event in document.events] == list(range(len(document.events)))
    assert document.events[-1].terminal
    assert document.run is not None
    assert document.shape is not None
    assert {"ask", "ask_again"} <= document.shape.steps.keys()
    with pytest.raises(TaskNotFoundError):
        await exported(stack, "unknown")


async def test_a_task_that_is_too_large_is_not_exported(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_requests, "MAX_EXPORT_CHARACTERS", 500)
    with pytest.raises(PayloadTooLargeError, match="too large to be exported"):
        await export_of_failed(stack, FourSteps())


@pytest.mark.parametrize("keys", [(), (SecretStr("a key of sixteen"),)], ids=["plain", "signed"])
async def test_a_run_is_replayed_against_the_code_that_has_run_it(
    stack: Stack, tmp_path: Path, keys: tuple[SecretStr, ...]
) -> None:
    """The keys of the service are not needed."""
    document = await export_of_failed(stack, FourSteps(), state_keys=list(keys))
    path = tmp_path / "run.json"
    path.write_text(document.model_dump_json())
    for run in (document, path, path.read_text(), json.loads(path.read_text())):
        report = replay(run, FourSteps)
        assert (report.steps, report.difference) == (3, None)


async def test_a_replay_runs_no_step(stack: Stack) -> None:
    document = await export_of_failed(stack, FansOut())
    workflow = FansOut()
    assert replay(document, workflow).difference is None
    assert not workflow.begun


async def test_a_replay_names_the_first_step_that_differs(stack: Stack) -> None:
    document = await export_of_failed(stack, FourSteps())
    report = replay(document, RenamedSecond)
    assert report.difference is not None
    found = report.difference
    assert (found.number, found.step, found.event) == (1, "second", "Second")
    assert "there is no step 'second'" in found.why
    report = replay(document, OtherWay)
    assert report.difference is not None
    found = report.difference
    assert (found.number, found.step, found.event) == (1, "second", "Second")
    assert "not running with Second at this place; running: third" in found.why


async def test_a_replay_tells_that_the_run_could_not_go_on(stack: Stack) -> None:
    report = replay(await export_of_failed(stack, FourSteps()), Renamed)
    assert report.steps == 3
    assert report.difference is not None
    assert report.difference.number is None
    assert "step 'fourth' does not exist" in report.difference.why


async def test_a_parked_run_is_replayed_from_its_snapshot(stack: Stack) -> None:
    async with stack.serving(stack.service(AsksTwice(), idle_timeout=0.0)):
        task_id = await stack.submit()
        await stack.send(task_id, Answer(text="ann"))
        await until(lambda: has_status(stack, task_id, TaskStatus.WAITING))
        document = await exported(stack, task_id)
    assert replay(document, AsksTwice).difference is None
    report = replay(document, ThreeNames)
    assert report.difference is not None
    assert "ask_again" in report.difference.why


async def test_a_retried_run_is_replayed(stack: Stack) -> None:
    async with stack.serving(stack.service(FourSteps())):
        again = await stack.plane.retries.retry(await failed(stack), TaskRetry())
        await stack.end(again.task_id)
        assert replay(await exported(stack, again.task_id), FourSteps).difference is None


async def test_what_cannot_be_replayed_says_so(stack: Stack) -> None:
    workflow = FourSteps()
    workflow.is_repaired = True
    async with stack.serving(stack.service(workflow)):
        document = await exported(stack, (await stack.run()).task_id)
    with pytest.raises(InvalidRequestError, match="has no journal"):
        replay(document, FourSteps)
    newer = {**document.model_dump(mode="json"), "format": 2, "task": "something else"}
    for run in (newer, json.dumps(newer)):
        with pytest.raises(ExportFormatError, match="format 2 and this release reads format 1"):
            replay(run, FourSteps)
    for other in ("[]", "{", {"format": 1}):
        with pytest.raises(InvalidRequestError):
            replay(other, FourSteps)


# -- copies in other systems


@pytest.fixture
async def other() -> AsyncIterator[Stack]:
    """Another system."""
    async with running_stack() as stack:
        yield stack


async def test_a_copy_is_what_was_exported(stack: Stack, other: Stack) -> None:
    document = await export_of_failed(stack, AsksTwiceFails(), idle_timeout=0.0)
    async with Client(other.server.config.url) as client:
        for _ in range(2):  # the answer to the first one may be lost
            copy = await client.tasks.import_(document)
            assert (copy.task_id, copy.status) == (document.task.task_id, TaskStatus.FAILED)
            assert copy.imported_at is not None
        named = await client.tasks.import_(document, task_id="copy")
        assert named.error == document.task.error
        again = await client.tasks.export("copy")
        assert again.task.steps == document.task.steps
        assert (again.input, again.events, again.inbox) == (document.input, document.events, document.inbox)
        assert replay(again, AsksTwiceFails) == replace(replay(document, AsksTwiceFails), task_id="copy")
        assert [event.type for event in await other.events("copy")] == [
            event.type for event in document.events
        ]
        with pytest.raises(ConflictError, match="is another one"):
            await client.tasks.import_(document.model_copy(update={"input": '{"a": 1}'}))


class AsksTwiceFails(AsksTwice):
    """Fails without an answer."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Second:  # type: ignore[override]
        await ctx.store.set("first", "ann")
        return Second(number=1)

    @step
    async def ask_again(self, ctx: Context, ev: Second) -> StopEvent:  # type: ignore[override]
        raise ValueError(await ctx.store.get("first"))


@pytest.mark.parametrize("keys", [(), (SecretStr("a key of sixteen"),)], ids=["plain", "signed"])
@pytest.mark.parametrize("task_id", [None, "copy"])
async def test_a_copy_can_be_retried_where_the_service_is(
    stack: Stack, other: Stack, task_id: str | None, keys: tuple[SecretStr, ...]
) -> None:
    document = await export_of_failed(stack, FourSteps(), state_keys=list(keys))
    repaired = FourSteps()
    repaired.is_repaired = True
    async with Client(other.server.config.url) as client:
        copy = await client.tasks.import_(document, task_id=task_id)
        async with other.serving(other.service(repaired, state_keys=list(keys))):
            again = await client.tasks.retry(copy.task_id)
            assert await again.result() == ONCE_EACH
    assert repaired.begun == {"fourth": 1}


async def test_what_cannot_be_imported_leaves_nothing(stack: Stack, other: Stack) -> None:
    document = await export_of_failed(stack, FourSteps())
    async with stack.serving(stack.service(AsksTwice(), "asks")):
        task_id = await stack.submit("asks")
        await until(lambda: has_status(stack, task_id, TaskStatus.WAITING))
        open_task = await exported(stack, task_id)
    raw = document.model_dump(mode="json")
    wrong: list[dict[str, Any]] = [
        open_task.model_dump(mode="json"),
        {**raw, "format": 2},
        {**raw, "events": []},
        {**raw, "events": [*raw["events"], *raw["events"]]},
        {**raw, "events": [{**event, "terminal": False} for event in raw["events"]]},
        {**raw, "inbox": [{"seq": 2, "event": "{}", "consumed": True}]},
        {**raw, "input": "[]"},
        {**raw, "input": '{"a": "\0"}'},
        {**raw, "inbox": [{"seq": 1, "event": "\0", "consumed": True}]},
        *({**raw, "task": {**raw["task"], "task_id": bad}} for bad in ("", "..", "a\x1fb", "a" * 300)),
        {**raw, "run": {**raw["run"], "next_seq": 0}},
        {"format": 1},
    ]
    for each in wrong:
        with pytest.raises(InvalidRequestError):
            await other.plane.exports.import_(each)
    assert await other.store.read(lambda tx: tx.sessions.page()) == []
