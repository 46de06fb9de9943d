"""From where a run goes on that is forked before one of its steps, and when that is not possible."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from time import process_time
from typing import Any

import pytest

from llama_deploy.control_plane.decisions import retries
from llama_deploy.control_plane.decisions.forks import (
    ForkedRun,
    StoredRun,
    first_attempt_of_run,
    first_reached,
    forked,
)
from llama_deploy.control_plane.decisions.takeovers import MAX_TAKEOVERS, TakeoverReason, take_over
from llama_deploy.errors import RetryRefusedError
from llama_deploy.state_stores.records import RunHeadRecord
from llama_deploy.testing.records import a_task
from llama_deploy.types import Durability, TaskStatus
from llama_deploy.types.instance_protocol import RunOrigin, RunRenewal
from llama_deploy.types.run_past import PastWrite, ReplacedJournal
from llama_deploy.types.run_points import RunPoint, mark_of
from llama_deploy.types.state_changes import StateChange
from llama_deploy.types.task_lists import EndedStep

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STATES = ["one", "two", "three", "four"]
"""The states after the first four writes: two entries, a snapshot, an entry."""
PLACES = [(0, 0), (1, 0), (2, 0), (2, 1)]
"""Where the run was before each of them."""
REPLACED = ReplacedJournal(
    first=0, entries=["e0", "e1"], fingerprint="old", library_version="1", needs="needs 1"
)


PART = REPLACED.model_copy(update={"first": 1, "entries": ["e1"]})
"""Without the entries before, and without a snapshot that would stand for them."""


def past(*, without: int | None = None, replaced: ReplacedJournal = REPLACED) -> list[PastWrite]:
    earlier = [None, *STATES]
    return [
        PastWrite(
            seq=entries,
            snapshots=snapshots,
            state_change=StateChange.between(earlier[n], STATES[n]),
            replaced=replaced if n == 2 else None,
        )
        for n, (entries, snapshots) in enumerate(PLACES)
        if n != without
    ]


def run(writes: Sequence[PastWrite] | None = None, **head: Any) -> StoredRun:
    fields = {"snapshot": "snapshot 1", "state": STATES[-1], "needs": "needs 2", "snapshots": 1, **head}
    stored = RunHeadRecord("old", "new", "2", **fields)
    return StoredRun.of(stored, first=2, length=4, past=past() if writes is None else writes)


def point(entries: int, snapshots: int, state: str | None) -> RunPoint:
    return RunPoint(entries, snapshots, mark_of(state))


def found(entries: int, snapshots: int, state: str | None) -> ForkedRun:
    forked_run = forked(run(), point(entries, snapshots, state))
    assert forked_run is not None
    return forked_run


@pytest.mark.parametrize(("entries", "state"), [(2, "three"), (3, "four"), (4, "four")])
def test_after_the_last_snapshot_the_present_journal_is_taken(entries: int, state: str) -> None:
    taken = found(entries, 1, state)
    assert (taken.head.snapshot, taken.head.needs, taken.head.fingerprint) == ("snapshot 1", "needs 2", "new")
    assert (taken.head.state, taken.head.snapshots) == (state, 1)
    assert (taken.length, taken.entries) == (entries, None)


@pytest.mark.parametrize(("entries", "state"), [(1, "one"), (2, "two")])
def test_before_a_snapshot_what_it_has_replaced_is_taken(entries: int, state: str) -> None:
    taken = found(entries, 0, state)
    assert (taken.head.snapshot, taken.head.needs, taken.head.fingerprint) == (None, "needs 1", "old")
    assert (taken.head.library_version, taken.head.state, taken.head.snapshots) == ("1", state, 0)
    assert (taken.length, taken.entries) == (entries, ["e0", "e1"][:entries])


def test_before_the_first_state_there_was_none() -> None:
    assert found(0, 0, None).head.state is None


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (run(), point(1, 0, "two")),
        (run(), point(3, 1, "three")),
        (run(), point(5, 1, "four")),
        (run(), point(1, 1, "three")),
        (run(), point(3, 0, "two")),
        (run(), point(2, 2, "four")),
        (run([]), point(2, 1, "three")),
        (run([]), point(2, 0, "two")),
        (run(past(without=3)), point(2, 1, "three")),
        (run(past(without=1)), point(1, 0, "one")),
        (run(past(without=2)), point(2, 0, "two")),
        (run(state="of an older release"), point(3, 1, "four")),
        (run(snapshot=None), point(3, 1, "four")),
        (run(past(replaced=PART)), point(2, 0, "two")),
    ],
    ids=[
        "another state",
        "another state after the snapshot",
        "more entries than there are",
        "fewer than the snapshot has",
        "more than were replaced",
        "a later snapshot",
        "no change is kept",
        "nothing is kept",
        "the last change is missing",
        "a change between is missing",
        "the replaced journal is missing",
        "an unknown state",
        "a missing snapshot",
        "a missing snapshot before what was replaced",
    ],
)
def test_a_point_to_which_nothing_leads_back_is_refused(stored: StoredRun, wanted: RunPoint) -> None:
    assert forked(stored, wanted) is None


@pytest.mark.parametrize("splices", [[], [(0, 1, "")], [(0, 10**6, "tree")], [(10**6, 1, "three")]])
def test_changes_that_lead_to_another_state_than_they_say_are_refused(
    splices: list[tuple[int, int, str]],
) -> None:
    """As in an export that somebody has changed."""
    *earlier, last = past()
    wrong = StateChange(after=mark_of("four"), before=mark_of("three"), splices=splices)
    stored = run([*earlier, last.model_copy(update={"state_change": wrong})])
    assert forked(stored, point(2, 1, "three")) is None
    assert forked(stored, point(3, 1, "four")) is not None


def test_a_gap_before_the_point_does_not_matter() -> None:
    assert forked(run(past(without=0)), point(1, 0, "one")) is not None


def step(number: int, at: RunPoint | None) -> EndedStep:
    text = None if at is None else str(at)
    return EndedStep(
        step=f"step {number}", attempt=1, began_at=NOW, ended_at=NOW, step_id=f"1.{number}", point=text
    )


def test_the_first_step_is_named_that_can_be_reached() -> None:
    steps = [step(1, None), step(2, point(1, 0, "one")), step(3, point(3, 1, "four"))]
    assert first_reached(run(), steps) == steps[1]
    assert first_reached(run([]), steps) == steps[2]
    assert first_reached(run([]), steps[:2]) is None
    assert first_reached(None, [*steps, step(4, RunPoint(0))]) == step(4, RunPoint(0))


def test_one_of_many_steps_is_looked_for_without_a_mark_for_each() -> None:
    """Also if the state is large and none of them can be reached."""
    large = "x" * 4_000_000
    steps = [step(number, RunPoint(number, 0, mark_of("lost"))) for number in range(1, 1001)]
    stored = StoredRun.of(RunHeadRecord("old", "f", "1", state=large), first=0, length=2000, past=[])
    began = process_time()
    assert first_reached(stored, steps) is None
    took, began = process_time() - began, process_time()
    for _ in range(50):
        mark_of(large)
    assert took < process_time() - began


def test_a_run_has_begun_with_the_last_attempt_to_which_the_task_was_moved() -> None:
    task = a_task("old", attempt=1)
    assert first_attempt_of_run(task) == 1
    task = take_over(task, TakeoverReason.LOST)._replace(attempt=2)
    task = take_over(task, TakeoverReason.MOVED)._replace(attempt=3)
    task = take_over(task, TakeoverReason.LOST)._replace(attempt=4)
    assert first_attempt_of_run(task) == 3
    for attempt in range(4, MAX_TAKEOVERS + 10):
        task = take_over(task, TakeoverReason.LOST)._replace(attempt=attempt + 1)
    assert first_attempt_of_run(task) == 10, "earlier takeovers are not known any more"


def test_a_fork_has_the_journal_of_then_and_no_inbox() -> None:
    ended = a_task(
        "old",
        status=TaskStatus.FAILED,
        durability=Durability.STEP,
        has_run=True,
        inbox_length=3,
        finished_at=NOW,
    )
    fork = retries.Fork(step(2, RunPoint(1)), found(1, 0, "one"))
    plan = retries.retry(ended, task_id="new", origin="1.2", at=NOW, routing=None, fork=fork)
    assert (plan.copies_run, plan.copies_inbox, plan.fork) == (False, False, fork)
    assert (plan.task.has_run, plan.task.journal_length, plan.task.inbox_length) == (True, 1, 0)
    assert (plan.task.retry_of, plan.task.retry_from) == ("old", "1.2")
    first = retries.Fork(step(1, RunPoint(0)), None)
    plan = retries.retry(ended, task_id="new", origin="1.1", at=NOW, routing=None, fork=first)
    assert (plan.task.has_run, plan.task.journal_length) == (False, 0)


def test_a_fork_forgets_what_was_used_up_where_it_begins() -> None:
    ended = a_task("second", finished_at=NOW)
    later = NOW.replace(minute=2)
    new = RunRenewal(entries=5, paused_seconds=120.0)
    origin = retries.origin_of_fork(ended, None, step=step(1, None), entries=5, at=later)
    assert origin == RunOrigin(task_id="second", renewals=[new])
    earlier = RunOrigin(task_id="first", renewals=[RunRenewal(entries=3)])
    chained = retries.origin_of_fork(ended, earlier, step=step(1, None), entries=5, at=later)
    assert chained == RunOrigin(task_id="first", renewals=[RunRenewal(entries=3), new])


def test_a_refusal_names_the_step_from_which_it_is_possible() -> None:
    ended, wanted, nearest = a_task("old"), step(1, None), step(3, RunPoint(2))
    named = retries.not_reached(ended, wanted, nearest)
    assert "cannot go on before step 1.1 (step 1)" in str(named)
    assert str(named).endswith("the first one after it from which it can is step 1.3 (step 3)")
    assert (named.reason, named.task_id) == ("step", "old")
    assert str(retries.not_reached(ended, wanted, None)).endswith("retry it from the last step")


def test_before_the_first_step_no_journal_is_needed() -> None:
    ended = a_task("old", status=TaskStatus.SUCCEEDED, has_run=False, durability=Durability.STEP)
    retries.check_kept(ended, is_routed=False, from_beginning=True)
    with pytest.raises(RetryRefusedError, match="the setting retention_journals keeps those of later tasks"):
        retries.check_kept(ended, is_routed=False)
