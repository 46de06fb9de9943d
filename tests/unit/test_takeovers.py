"""Which part of a stream may come again when a new attempt takes over."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.test_lifecycle import BACKOFF, NOW, a_write, events, new_task

from llama_deploy.control_plane.decisions import hops, lifecycle
from llama_deploy.control_plane.decisions.routing import NEW_ROUTE, Hop
from llama_deploy.control_plane.decisions.takeovers import MAX_TAKEOVERS, TakeoverReason, takeovers_of
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import NewAttempt, TaskEvent, TaskStatus
from llama_deploy.types.instance_protocol import (
    AttemptEvents,
    AttemptOutcome,
    EventPayload,
    Parking,
    UnfinishedSteps,
)


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


def steps(first_event: int, *runs: int, begun: int = 9) -> UnfinishedSteps:
    return UnfinishedSteps(first_event=first_event, runs=list(runs), begun=begun)


def lost(task: TaskRecord) -> TaskRecord:
    return lifecycle.lose(task, at=NOW, backoff=BACKOFF).task


def test_without_a_journal_all_that_the_lost_attempt_has_streamed_may_come_again() -> None:
    task = lost(streamed(claimed(), 5))
    assert takeovers_of(task) == [NewAttempt(attempt=2, position=5, repeats_from=0, reason="lost")]
    again = lost(streamed(claimed(task), 3))
    assert takeovers_of(again)[1:] == [NewAttempt(attempt=3, position=8, repeats_from=5, reason="lost")]


def test_with_a_journal_only_what_steps_have_streamed_whose_end_is_not_stored() -> None:
    task = journalled(streamed(claimed(), 5), unfinished=steps(5))
    task = lost(streamed(task, 2))
    facts: dict[str, Any] = {"unfinished": [], "begun": 9, "reason": "lost"}
    assert takeovers_of(task) == [NewAttempt(attempt=2, position=7, repeats_from=5, **facts)]
    # In the second attempt, a step that began with its second event is still running at the write.
    task = journalled(streamed(claimed(task), 4), unfinished=steps(1, 3, begun=5))
    facts = {"unfinished": [3], "begun": 5, "reason": "lost"}
    assert takeovers_of(lost(task))[1:] == [NewAttempt(attempt=3, position=11, repeats_from=8, **facts)]


def test_an_event_comes_again_if_its_step_had_not_finished() -> None:
    new = NewAttempt(attempt=2, position=9, repeats_from=4, unfinished=[3], begun=6, reason="lost")

    def repeats(index: int, step_run: int | None) -> bool:
        return new.repeats(TaskEvent(index=index, type="Token", data={}, step_run=step_run))

    assert [repeats(index, 3) for index in (3, 4, 8, 9)] == [False, True, True, False]
    assert [repeats(5, run) for run in (-1, 2, 3, 5, 6, 7)] == [False, False, True, False, True, True]
    assert repeats(5, None), "it is not known"
    assert new.model_copy(update={"unfinished": None}).repeats(
        TaskEvent(index=5, type="Token", data={}, step_run=2)
    )


def test_an_older_instance_does_not_say_which_steps_run_so_the_end_of_a_step_counts() -> None:
    task = streamed(journalled(streamed(claimed(), 5)), 2)
    assert takeovers_of(lost(task)) == [NewAttempt(attempt=2, position=7, repeats_from=5, reason="lost")]


def test_a_position_beyond_what_has_arrived_is_cut() -> None:
    task = lost(journalled(claimed(), unfinished=steps(9)))
    assert [(new.position, new.repeats_from) for new in takeovers_of(task)] == [(0, 0)]


def test_a_run_that_becomes_volatile_repeats_everything() -> None:
    task = lost(journalled(streamed(claimed(), 5), unfinished=steps(5)))
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
    task = journalled(task, unfinished=steps(0), parking=Parking(inbox_seq=0))
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
