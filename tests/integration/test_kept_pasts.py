"""What is kept of the past of runs for forks, in the store and in exports, and what is not."""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator
from itertools import chain, repeat
from typing import Any

import pytest

from llama_deploy.services.run.journal import journal_backlog
from llama_deploy.types import TaskStatus
from llama_deploy.types.retention import PurgeRequest, RetentionRule
from llama_deploy.types.run_past import MAX_PAST_BYTES
from llama_deploy.types.task_export import TaskExport
from tests.integration.in_process import Stack, result_of, running_stack
from tests.integration.repairable_workflows import (
    ALL,
    KEYS,
    ONCE_EACH,
    FourSteps,
    end_of_retry,
    failed,
    refused,
    steps_of,
)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def test_a_compacted_journal_is_kept_for_forks(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_backlog, "COMPACT_AFTER_TICKS", 6)
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow, state_keys=KEYS)):
        task_id = await failed(stack)
        past = await stack.store.read(lambda tx: tx.runs.load_past(task_id))
        assert any(each.replaced for each in past)
        workflow.is_repaired = True
        for number in range(1, 5):
            assert result_of(await end_of_retry(stack, task_id, f"1.{number}")) == ONCE_EACH


async def test_a_state_that_is_too_large_to_be_kept_is_refused_with_the_next_step(stack: Stack) -> None:
    workflow = FourSteps()
    workflow.paddings = repeat("x" * MAX_PAST_BYTES)
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack)
        workflow.is_repaired = True
        # Only the end of the long value changes.
        assert result_of(await end_of_retry(stack, task_id, "1.3")) == ONCE_EACH

        workflow.is_repaired = False
        workflow.paddings = chain((each * MAX_PAST_BYTES for each in "abcd"), repeat(""))
        task_id = await failed(stack)
        reason, text = await refused(stack, task_id, "1.2")
        assert reason == "step"
        assert (
            "does not reach back so far; the first one after it from which it can is step 1.4 (fourth)"
            in text
        )
        workflow.is_repaired = True
        assert result_of(await end_of_retry(stack, task_id, "1.4")) == ONCE_EACH


async def test_a_state_that_an_older_release_has_written_is_not_taken_for_another(stack: Stack) -> None:
    """Its control plane stores the state, and not how it leads back."""
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack)
        (head,) = (await stack.store.read(lambda tx: tx.runs.load([task_id]))).values()
        newer = head._replace(state=f"{head.state} ")
        await stack.store.transact(lambda tx: tx.runs.put([newer]))
        for step_id in ("1.2", "1.4"):
            reason, text = await refused(stack, task_id, step_id)
            assert reason == "step"
            assert text.endswith("; retry it from the last step")
    assert len(await stack.store.read(lambda tx: tx.runs.load_past(task_id))) == 3


async def test_a_succeeded_task_can_be_forked_if_its_journal_is_kept() -> None:
    workflow = FourSteps()
    workflow.is_repaired = True
    rules = [RetentionRule(service="other", journals=False)]
    async with (
        running_stack(retention_journals=True, retention_rules=rules) as stack,
        stack.serving(stack.service(workflow)),
        stack.serving(stack.service(FourSteps(), "other")),
    ):
        view = await stack.run("service")
        assert result_of(view) == ONCE_EACH
        for step_id in ("1.2", "1.4", "last_step"):
            assert result_of(await end_of_retry(stack, view.task_id, step_id)) == ONCE_EACH
        assert (await stack.plane.tasks.get(view.task_id)).status is TaskStatus.SUCCEEDED
        await stack.plane.storage.purge(PurgeRequest(older_than_seconds=0))
        rows = await stack.store.read(
            lambda tx: (tx.runs.load([view.task_id]), tx.runs.load_past(view.task_id))
        )
        assert rows == ({}, [])


async def test_from_the_first_step_a_run_begins_with_the_state_that_the_session_has_now(
    stack: Stack,
) -> None:
    """As from the start: what the run began with is not in its journal."""
    workflow = FourSteps()
    workflow.is_repaired = True
    async with stack.serving(stack.service(workflow)):
        view = await stack.run("service", number=5)
        for _ in range(2):
            again = result_of(await end_of_retry(stack, view.task_id, "1.1"))
        assert again == [7, ALL * 3, [3] * 12]


@pytest.mark.parametrize(
    "settings",
    [{}, {"retention_journals": True, "retention_rules": [RetentionRule(service="service", journals=False)]}],
    ids=["default", "rule"],
)
async def test_otherwise_a_fork_of_a_succeeded_task_names_the_setting(settings: dict[str, Any]) -> None:
    workflow = FourSteps()
    workflow.is_repaired = True
    async with running_stack(**settings) as stack, stack.serving(stack.service(workflow)):
        view = await stack.run("service")
        reason, text = await refused(stack, view.task_id, "1.3")
        assert reason == "succeeded"
        assert "retention_journals" in text


@pytest.mark.parametrize("is_kept", [False, True])
async def test_an_imported_task_can_be_forked(stack: Stack, *, is_kept: bool) -> None:
    workflow = FourSteps()
    workflow.is_repaired = is_kept
    async with running_stack(retention_journals=is_kept) as other:
        async with other.serving(other.service(workflow, state_keys=KEYS)):
            view = await other.run("service")
        document = (await other.plane.exports.export(view.task_id)).model_dump_json()
    workflow.is_repaired = True
    async with stack.serving(stack.service(workflow, state_keys=KEYS)):
        exported = TaskExport.read(document)
        for copy in (view.task_id, "copy"):
            await stack.plane.exports.import_(exported.model_dump(mode="json"), task_id=copy)
            assert await steps_of(stack, copy) == list(exported.steps)
            assert result_of(await end_of_retry(stack, copy, "1.2")) == ONCE_EACH


async def test_an_export_of_an_older_release_is_imported_once(stack: Stack) -> None:
    """It does not say where its steps began."""
    async with stack.serving(stack.service(FourSteps())):
        exported = await stack.plane.exports.export(await failed(stack))
        document = exported.model_dump(mode="json", exclude={"past"})
        for each in document["steps"]:
            del each["step_id"], each["point"]
        for _ in range(2):
            await stack.plane.exports.import_(document, task_id="copy")
        assert [(each.step, each.step_id) for each in await steps_of(stack, "copy")] == [
            (each.step, each.step_id) for each in exported.steps
        ]
        assert (await refused(stack, "copy", "1.2"))[0] == "step"


async def test_a_document_of_an_older_release_is_the_same_task_although_it_has_no_counts(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say how many snapshots were written, and where steps began."""
    monkeypatch.setattr(journal_backlog, "COMPACT_AFTER_TICKS", 6)
    async with stack.serving(stack.service(FourSteps())):
        exported = await stack.plane.exports.export(await failed(stack))
    assert exported.run is not None
    assert exported.run.snapshots > 0
    document = exported.model_dump(mode="json", exclude={"past": True, "run": {"snapshots"}})
    await stack.plane.exports.import_(exported.model_dump(mode="json"), task_id="copy")
    assert await stack.plane.exports.import_(document, task_id="copy") == "copy"


@pytest.mark.parametrize(
    "damage",
    [
        {"state_change": '{"after": 1}'},
        {"state_change": "not JSON"},
        {"replaced": b"not compressed"},
        {"replaced": zlib.compress(b"{}")},
    ],
    ids=["another form", "not JSON", "not compressed", "fields are missing"],
)
async def test_before_what_cannot_be_read_forks_are_refused_with_the_reason(
    stack: Stack,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: dict[str, Any],
) -> None:
    """A newer release may have written it. It does not prevent an export, or a fork from after it."""
    monkeypatch.setattr(journal_backlog, "COMPACT_AFTER_TICKS", 6)
    workflow = FourSteps()
    async with stack.serving(stack.service(workflow)):
        task_id = await failed(stack)
        past = await stack.store.read(lambda tx: tx.runs.load_past(task_id))
        (compacted,) = [each for each in past if each.replaced is not None]
        await stack.store.transact(lambda tx: tx.runs.put_past([compacted._replace(**damage)]))
        number = compacted.seq + compacted.snapshots + 1
        reason, text = await refused(stack, task_id, "1.2")
        assert reason == "step"
        assert (
            f"cannot go on before step 1.2 (second): what write {number} of its journal has replaced" in text
        )
        (nearest,) = re.findall(r"from which it can is step (1\.\d+) ", text)
        exported = await stack.plane.exports.export(task_id)
        assert len(exported.past) >= len(past) - 1
        workflow.is_repaired = True
        assert result_of(await end_of_retry(stack, task_id, nearest)) == ONCE_EACH
    assert f"what write {number} of the journal of task {task_id} has replaced cannot be read" in caplog.text
