"""What a retry takes from the ended task, and when it is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llama_deploy.control_plane.decisions import retries
from llama_deploy.errors import RetryRefusedError
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.testing.records import a_full_task, a_task
from llama_deploy.types import Durability, TaskStatus
from llama_deploy.types.instance_protocol import RunOrigin, RunRenewal

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STORED: dict[str, Any] = {
    "status": TaskStatus.FAILED,
    "durability": Durability.STEP,
    "has_run": True,
    "journal_length": 4,
    "running_seconds": 2.5,
    "inbox_length": 3,
    "finished_at": NOW,
}


def retry(ended: TaskRecord, origin: str = "last_step", **changes: Any) -> retries.Retry:
    return retries.retry(ended, task_id="new", origin=origin, at=NOW, **{"routing": None, **changes})


def test_a_retry_has_what_was_submitted_and_nothing_of_what_has_happened() -> None:
    ended = a_full_task("old")._replace(routed_to=None, routing=None, **STORED)
    new = retry(ended, "start").task
    same = {"session_id", "service_name", "input", "max_attempts", "tenant", "subject", "tags", "priority"}
    own = {
        "task_id": "new",
        "status": TaskStatus.PENDING,
        "created_at": NOW,
        "status_changed_at": NOW,
        "retry_of": "old",
        "retry_from": "start",
    }
    for name, value in new._asdict().items():
        if name in same:
            assert value == getattr(ended, name), name
        else:
            assert value == own.get(name, TaskRecord._field_defaults.get(name)), name


def test_from_the_last_step_it_has_what_the_next_attempt_would_have_had() -> None:
    plan = retry(a_task("old", **STORED))
    new = plan.task
    assert (plan.copies_run, plan.copies_inbox) == (True, True)
    assert (new.has_run, new.journal_length, new.inbox_length, new.running_seconds) == (True, 4, 3, 0.0)
    assert (new.attempt, new.losses, new.stream_length, new.durability) == (1, 0, 0, None)


def test_from_the_start_it_has_no_journal_and_no_inbox() -> None:
    plan = retry(a_task("old", **STORED), "start", input='{"n": 2}')
    assert (plan.copies_run, plan.copies_inbox) == (False, False)
    assert (plan.task.has_run, plan.task.inbox_length, plan.task.input) == (False, 0, '{"n": 2}')


@pytest.mark.parametrize("status", [each for each in TaskStatus if not each.is_terminal])
@pytest.mark.parametrize("origin", ["start", "last_step"])
def test_an_open_task_is_not_retried(status: TaskStatus, origin: str) -> None:
    with pytest.raises(RetryRefusedError, match=f"has not ended: it is {status.value}") as refused:
        retry(a_task("old", status=status, has_run=True), origin)
    assert refused.value.reason == "open"


NOTHING_KEPT: list[tuple[dict[str, Any], str]] = [
    ({"status": TaskStatus.SUCCEEDED, "has_run": False}, "succeeded"),
    ({"durability": Durability.VOLATILE, "has_run": False, "volatile_reason": "an LLM"}, "volatile"),
    ({"durability": Durability.TASK, "has_run": False}, "durability"),
    ({"has_run": False}, "journal"),
    ({"routed_to": "other"}, "route"),
]


@pytest.mark.parametrize(("changes", "reason"), NOTHING_KEPT, ids=[reason for _, reason in NOTHING_KEPT])
def test_without_a_journal_only_a_retry_from_the_start_is_possible(
    changes: dict[str, Any], reason: str
) -> None:
    ended = a_task("old", **{**STORED, **changes})
    with pytest.raises(RetryRefusedError, match='retry it from "start"') as refused:
        retry(ended)
    assert (refused.value.reason, refused.value.task_id) == (reason, "old")
    assert not retry(ended, "start").copies_run


@pytest.mark.parametrize("durability", [None, Durability.STEP], ids=["never begun", "first step"])
def test_a_task_that_has_finished_no_step_goes_on_from_its_beginning(durability: Durability | None) -> None:
    changes: dict[str, Any] = {
        "has_run": False,
        "running_seconds": 0.0,
        "journal_length": 0,
        "durability": durability,
    }
    plan = retry(a_task("old", **{**STORED, **changes}))
    assert (plan.copies_run, plan.copies_inbox) == (False, True)


def test_an_orchestrator_routes_a_retry_from_the_start_again() -> None:
    ended = a_task("old", **{**STORED, "routed_to": "other"})
    assert retry(ended, "start", routing="{}").task.routing == "{}"
    with pytest.raises(RetryRefusedError):
        retry(a_task("old", **STORED), routing="{}")


def test_a_copy_says_who_has_begun_the_run_and_where_each_retry_begins() -> None:
    first = a_task("first", **STORED)
    origin = retries.origin_of_copy(first, None, at=NOW + timedelta(hours=1))
    assert origin == RunOrigin(task_id="first", renewals=[RunRenewal(entries=4, paused_seconds=3600)])
    second = a_task("second", **{**STORED, "journal_length": 6})
    following = retries.origin_of_copy(second, origin, at=NOW - timedelta(seconds=1))
    assert following.task_id == "first"
    assert [(each.entries, each.paused_seconds) for each in following.renewals] == [(4, 3600), (6, 0)]
