"""Which tasks are due, and what a transaction takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.decisions.retention_rules import (
    COUNTED_AFTER,
    Pass,
    Removal,
    RetentionPolicy,
    decode_cursors,
    digest_of,
    encode_cursors,
    share,
)
from llama_deploy.control_plane.maintenance.batch_pace import (
    MANY_WRITERS,
    ONE_WRITER,
    BatchLimits,
    BatchPace,
)
from llama_deploy.state_stores.retention_rows import Place, RowsOfTask
from llama_deploy.types import TaskStatus
from llama_deploy.types.retention import RetentionRule

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def policy(**settings: Any) -> RetentionPolicy:
    return RetentionPolicy.of(ControlPlaneConfig(**{f"retention_{key}": settings[key] for key in settings}))


def cutoff(which: RetentionPolicy, removal: Removal, counted: datetime | None = None) -> timedelta | None:
    at = which.cutoff(Pass(removal, 0, TaskStatus.FAILED), now=NOW, counted=counted)
    return None if at is None else NOW - at


def test_the_defaults_are_30_and_7_days() -> None:
    assert cutoff(policy(), Removal.TASKS) == timedelta(days=30)
    assert cutoff(policy(), Removal.EVENTS) == timedelta(days=7)
    assert len(list(policy().passes())) == 8


def test_nothing_is_off_but_by_choice() -> None:
    assert list(policy(task_days="off", event_days="off").passes()) == []
    assert {each.removal for each in policy(task_days="off").passes()} == {Removal.EVENTS}
    counted = policy(task_days="off", event_days="off", max_tasks=5)
    assert {each.removal for each in counted.passes()} == {Removal.TASKS}


def test_a_rule_leaves_to_the_defaults_what_it_does_not_say() -> None:
    which = policy(rules=[RetentionRule(service="chat", event_days=1)], task_days=50)
    assert cutoff(which, Removal.TASKS) == timedelta(days=50)
    assert cutoff(which, Removal.EVENTS) == timedelta(days=1)


def test_a_count_removes_nothing_that_ended_within_a_day() -> None:
    which = policy(max_tasks=3)
    assert cutoff(which, Removal.TASKS, counted=NOW - timedelta(days=3)) == timedelta(days=3)
    assert cutoff(which, Removal.TASKS, counted=NOW - timedelta(hours=3)) == COUNTED_AFTER
    assert cutoff(which, Removal.TASKS, counted=NOW - timedelta(days=99)) == timedelta(days=30)


def test_a_changed_policy_has_another_name() -> None:
    names = {policy().name, policy(task_days=3).name, policy(rules=[RetentionRule(service="a")]).name}
    assert len(names) == 3
    assert policy().name == policy().name


@pytest.mark.parametrize(
    "rule",
    [
        {"status": ["running"]},
        {"task_days": -1},
        {"task_days": "never"},
        {"max_tasks": 0},
        {"serviceName": "chat"},
        {"session": ""},
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ControlPlaneConfig.model_validate({"retention_rules": [rule]})


def test_the_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_PLANE_RETENTION_TASK_DAYS", "off")
    monkeypatch.setenv("CONTROL_PLANE_RETENTION_EVENT_DAYS", "2.5")
    monkeypatch.setenv("CONTROL_PLANE_RETENTION_RULES", '[{"status": ["failed"], "task_days": 90}]')
    config = ControlPlaneConfig()
    assert (config.retention_task_days, config.retention_event_days) == ("off", 2.5)
    assert config.retention_rules == [RetentionRule(status=(TaskStatus.FAILED,), task_days=90)]


@given(st.dictionaries(st.text(), st.tuples(st.integers(0, 2**53), st.integers(0, 2**62))))
def test_cursors_come_back(found: dict[str, tuple[int, int]]) -> None:
    start = datetime(1970, 1, 1, tzinfo=UTC)
    cursors = {
        name: Place(start + timedelta(microseconds=at), position) for name, (at, position) in found.items()
    }
    assert decode_cursors(encode_cursors(cursors)) == cursors


def test_equal_arguments_have_one_digest() -> None:
    assert digest_of("s", '{"a": 1, "b": 2}') == digest_of("s", '{"b":2,"a":1}')
    others = {digest_of("s", '{"a": 1}'), digest_of("s", '{"a": 1.0}'), digest_of("s", '{"a": true}')}
    assert len(others | {digest_of("other", '{"a": 1}'), digest_of("s", "not JSON")}) == 5


sizes = st.builds(RowsOfTask, st.integers(0, 50), st.integers(0, 50))


@given(st.lists(sizes, min_size=1), st.integers(1, 60), st.integers(1, 60))
def test_a_transaction_takes_what_fits_and_at_least_one_task(
    found: list[RowsOfTask], max_rows: int, max_bytes: int
) -> None:
    taken = share(found, max_rows=max_rows, max_bytes=max_bytes)
    assert 1 <= taken.size <= len(found)

    def fits(count: int) -> bool:
        return (
            sum(each.rows for each in found[:count]) <= max_rows
            and sum(each.bytes for each in found[:count]) <= max_bytes
        )

    assert fits(taken.size) is not taken.last_in_slices
    if taken.size < len(found) and not taken.last_in_slices:
        assert not fits(taken.size + 1)


@pytest.mark.parametrize("limits", [ONE_WRITER, MANY_WRITERS])
def test_a_busy_store_gets_smaller_transactions_and_longer_pauses(limits: BatchLimits) -> None:
    pace = BatchPace(limits, limits.first_tasks)
    first = pace.tasks
    pace.adapt(working=0.0005, waiting=0.0005)
    assert pace.tasks > first
    quick = pace.pause
    for _ in range(20):
        pace.adapt(working=0.2, waiting=0.3)
    assert pace.tasks < first
    assert pace.pause > 10 * quick


def test_waiting_for_others_makes_pauses_longer_and_transactions_no_smaller() -> None:
    pace = BatchPace(MANY_WRITERS, 80)
    pace.adapt(working=0.01, waiting=0.02)
    assert pace.tasks == 80
    assert pace.pause == pytest.approx(0.6)


def test_fewer_than_one_request_in_twenty_waits_for_a_removal_from_a_store_with_one_writer() -> None:
    pace = BatchPace(ONE_WRITER, ONE_WRITER.first_tasks)
    reading, working, waiting, request = 0.001, 0.0015, 0.002, 0.0015  # seconds, beside 500 requests a second
    pace.adapt(working=working, waiting=waiting)
    cycle = reading + waiting + pace.pause
    assert (reading + working + request) / cycle < 0.05
    assert pace.tasks / cycle > 150


@pytest.mark.parametrize(
    ("default", "rules", "kept"),
    [
        (False, [], False),
        (True, [], True),
        (False, [{"service": "chat", "journals": True}], True),
        (True, [{"service": "chat", "journals": False}], False),
        (True, [{"service": "other", "journals": False}], True),
        (True, [{"service": "chat", "task_days": 1}, {"journals": False}], True),
        (False, [{"status": ["failed"], "journals": True}], False),
        (False, [{"status": ["failed", "succeeded"], "session": "s1", "journals": True}], True),
    ],
)
def test_the_first_rule_says_whether_the_journal_of_a_success_is_kept(
    default: bool,  # noqa: FBT001
    rules: list[dict[str, Any]],
    kept: bool,  # noqa: FBT001
) -> None:
    which = policy(journals=default, rules=rules)
    assert which.keeps_journal(service_name="chat", session_id="s1") is kept
