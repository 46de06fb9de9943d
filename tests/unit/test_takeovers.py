"""Which part of a stream may come again when a new attempt takes over."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.test_lifecycle import BACKOFF, NOW, a_write, events, new_task

from llama_deploy.control_plane.decisions import hops, lifecycle
from llama_deploy.control_plane.decisions.routing import NEW_ROUTE, Hop
from llama_deploy.control_plane.decisions.takeovers import MAX_TAKEOVERS, TakeoverReason, takeovers_of
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import NewAttempt, TaskStatus
from llama_deploy.types.instance_protocol import AttemptEvents, AttemptOutcome, EventPayload, Parking


def claimed(task: TaskRecord | None = None) -> TaskRecord:
    task = lifecycle.take_turn(new_task(), at=NOW).task if task is None else task
    return lifecycle.claim(task, instance_id="a", attempt=task.attempt, token="token", at=NOW).task


def streamed(task: TaskRecord, count: int) -> TaskRecord:
    sent = AttemptEvents(
        task_id="task",
        attempt=task.attempt,
        token=task.token or "",
        first=task.attempt_events,
        events=events(count),
    )
    return lifecycle.take_events(task, sent).task


def journalled(task: TaskRecord, **changes: Any) -> TaskRecord:
    return lifecycle.journal(task, a_write(task, entry="entry", step_ended=True, **changes), at=NOW).task


def lost(task: TaskRecord) -> TaskRecord:
    return lifecycle.lose(task, at=NOW, backoff=BACKOFF).task


def test_without_a_journal_all_that_the_lost_attempt_has_streamed_may_come_again() -> None:
    task = lost(streamed(claimed(), 5))
    assert takeovers_of(task) == [NewAttempt(attempt=2, position=5, repeats_from=0, reason="lost")]
    again = lost(streamed(claimed(task), 3))
    assert takeovers_of(again)[1:] == [NewAttempt(attempt=3, position=8, repeats_from=5, reason="lost")]


def test_with_a_journal_only_what_steps_have_streamed_whose_end_is_not_stored() -> None:
    task = journalled(streamed(claimed(), 5), unfinished_from=5)
    task = lost(streamed(task, 2))
    assert takeovers_of(task) == [NewAttempt(attempt=2, position=7, repeats_from=5, reason="lost")]
    # In the second attempt, a step that began with its second event is still running at the write.
    task = journalled(streamed(claimed(task), 4), unfinished_from=1)
    assert takeovers_of(lost(task))[1:] == [NewAttempt(attempt=3, position=11, repeats_from=8, reason="lost")]


def test_an_older_instance_does_not_say_which_steps_run_so_the_end_of_a_step_counts() -> None:
    task = streamed(journalled(streamed(claimed(), 5)), 2)
    assert takeovers_of(lost(task)) == [NewAttempt(attempt=2, position=7, repeats_from=5, reason="lost")]


def test_a_position_beyond_what_has_arrived_is_cut() -> None:
    task = journalled(claimed(), unfinished_from=9)
    assert takeovers_of(lost(task)) == [NewAttempt(attempt=2, position=0, repeats_from=0, reason="lost")]


def test_a_run_that_becomes_volatile_repeats_everything() -> None:
    task = lost(journalled(streamed(claimed(), 5), unfinished_from=5))
    task = streamed(claimed(task), 2)
    task = lifecycle.journal(task, a_write(task, volatile="a socket"), at=NOW).task
    assert takeovers_of(lost(task))[1:] == [NewAttempt(attempt=3, position=7, repeats_from=0, reason="lost")]


def test_a_volatile_run_repeats_what_its_own_hop_has_streamed() -> None:
    first = Hop(service_name="one", input="{}")
    task = hops.ask_for_route(new_task(routing=NEW_ROUTE), at=NOW).task
    task = streamed(claimed(hops.go_on(task, first, waiting=[], at=NOW).task), 3)
    outcome = AttemptOutcome(
        task_id="task",
        attempt=1,
        token="token",
        first=3,
        events=[],
        status=TaskStatus.SUCCEEDED,
        terminal_event=EventPayload(type="StopEvent", data={}),
    )
    task = lifecycle.end(task, outcome, at=NOW).task
    task = claimed(hops.go_on(task, first, waiting=[], at=NOW).task)
    assert takeovers_of(task) == [], "the next hop takes over nothing"
    task = streamed(task, 2)
    task = lifecycle.journal(task, a_write(task, volatile="a socket"), at=NOW).task
    assert takeovers_of(lost(task)) == [NewAttempt(attempt=3, position=6, repeats_from=4, reason="lost")]


def test_an_attempt_that_is_handed_or_taken_back_says_so() -> None:
    running = streamed(claimed(), 2)
    handed = lifecycle.hand_back(running, attempt=1, token="token", at=NOW).task
    assert takeovers_of(handed) == [NewAttempt(attempt=2, position=2, repeats_from=0, reason="handed_back")]
    taken = lifecycle.take_back(running, reason=TakeoverReason.REPORTS_LOST, at=NOW).task
    assert takeovers_of(taken) == [NewAttempt(attempt=2, position=2, repeats_from=0, reason="reports_lost")]


@pytest.mark.parametrize("unseen", [0, 1])
def test_a_run_that_was_parked_and_is_woken_repeats_nothing(unseen: int) -> None:
    task = streamed(claimed(), 2)._replace(inbox_length=unseen)
    task = journalled(task, unfinished_from=0, parking=Parking(inbox_seq=0))
    task = lifecycle.wake(task, at=NOW).task
    assert (task.status, task.attempt) == (TaskStatus.QUEUED, 2)
    assert takeovers_of(task) == []
    assert takeovers_of(lost(claimed(task))) == [
        NewAttempt(attempt=3, position=2, repeats_from=2, reason="lost")
    ]


def test_the_last_takeovers_are_kept() -> None:
    task = claimed()
    for _ in range(MAX_TAKEOVERS + 3):
        task = claimed(lifecycle.take_back(streamed(task, 1), reason=TakeoverReason.LOST, at=NOW).task)
    kept = takeovers_of(task)
    assert len(kept) == MAX_TAKEOVERS
    assert kept[-1].attempt == task.attempt


def test_an_attempt_that_an_older_release_has_claimed_may_repeat_all_that_it_has_streamed() -> None:
    task = streamed(claimed(lost(streamed(claimed(), 5))), 2)._replace(repeats_from=None)
    assert takeovers_of(lost(task))[-1] == NewAttempt(attempt=3, position=7, repeats_from=5, reason="lost")
