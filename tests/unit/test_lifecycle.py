"""The life of a task under every order of happenings."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llama_deploy.control_plane import lifecycle
from llama_deploy.control_plane.lifecycle import Transition
from llama_deploy.errors import (
    EventsMissingError,
    FencedOutError,
    PayloadTooLargeError,
    SessionBusyError,
    TaskFinishedError,
)
from llama_deploy.state_stores.base import TaskRecord
from llama_deploy.types import SessionPolicy, TaskResult, TaskStatus
from llama_deploy.types.attempts import AttemptEvents, AttemptOutcome, EventPayload

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENDS = [TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.TIMED_OUT]


def new_task(**changes: object) -> TaskRecord:
    task = TaskRecord(
        task_id="task",
        session_id="session",
        service_name="service",
        input="{}",
        status=TaskStatus.PENDING,
        created_at=NOW,
        max_attempts=3,
    )
    return replace(task, **changes)  # type: ignore[arg-type]


def events(count: int) -> list[EventPayload]:
    return [EventPayload(type="Progress", data={"n": n}) for n in range(count)]


class TaskLife(RuleBasedStateMachine):
    """Applies any happening at any time, and remembers what has been seen."""

    def __init__(self) -> None:
        super().__init__()
        self.task = new_task()
        self.stream: list[EventPayload] = []
        self.sent = 0
        self.claims = 0
        self.ends = 0

    def apply(self, transition: Transition) -> None:
        before = self.task
        self.task = transition.task
        self.stream.extend(transition.events)
        if transition.ended and not before.status.is_terminal:
            self.ends += 1
        assert self.task.attempt >= before.attempt
        assert self.task.losses >= before.losses
        if transition.dispatch:
            assert self.task.status is TaskStatus.QUEUED

    @precondition(lambda self: self.task.status is TaskStatus.PENDING)
    @rule()
    def take_turn(self) -> None:
        self.apply(lifecycle.take_turn(self.task))

    @rule(instance=st.sampled_from(["a", "b"]), attempt=st.integers(1, 4))
    def claim(self, instance: str, attempt: int) -> None:
        before = self.task
        self.claims += 1
        token = f"token-{self.claims}"
        try:
            self.apply(lifecycle.claim(self.task, instance_id=instance, attempt=attempt, token=token, at=NOW))
        except FencedOutError:
            assert self.task is before
            return
        if before.status is TaskStatus.QUEUED:
            assert (self.task.instance_id, self.task.token) == (instance, token)
            self.sent = 0
        else:
            assert before.instance_id == instance
            assert self.task.token == before.token

    @rule(attempt=st.integers(1, 4), own=st.booleans(), count=st.integers(0, 3), shift=st.integers(-2, 2))
    def send_events(self, attempt: int, *, own: bool, count: int, shift: int) -> None:
        first = max(self.sent + shift, 0)
        token = self.task.token if own and self.task.token else "forged"
        sent = AttemptEvents(task_id="task", attempt=attempt, token=token, first=first, events=events(count))
        self.report(attempt, token, first, lambda: lifecycle.take_events(self.task, sent))
        self.sent = self.task.attempt_events

    @rule(attempt=st.integers(1, 4), own=st.booleans(), status=st.sampled_from(ENDS), count=st.integers(0, 2))
    def end(self, attempt: int, *, own: bool, status: TaskStatus, count: int) -> None:
        token = self.task.token if own and self.task.token else "forged"
        outcome = AttemptOutcome(
            task_id="task",
            attempt=attempt,
            token=token,
            first=self.sent,
            events=events(count),
            status=status,
            terminal_event=EventPayload(type="StopEvent", data={}),
        )
        self.report(attempt, token, self.sent, lambda: lifecycle.end(self.task, outcome, at=NOW))

    def report(self, attempt: int, token: str, first: int, act: object) -> None:
        before = self.task
        owned = before.status is TaskStatus.RUNNING and (before.attempt, before.token) == (attempt, token)
        try:
            self.apply(act())  # type: ignore[operator]
        except FencedOutError:
            assert not owned
            assert self.task is before
        except EventsMissingError:
            assert first > before.attempt_events
            assert self.task is before
        else:
            assert owned

    @precondition(lambda self: self.task.status is TaskStatus.RUNNING)
    @rule()
    def lose(self) -> None:
        attempt = self.task.attempt
        self.apply(lifecycle.lose(self.task, at=NOW))
        assert self.task.status.is_terminal or self.task.attempt == attempt + 1

    @rule(own=st.booleans())
    def hand_back(self, *, own: bool) -> None:
        token = self.task.token if own and self.task.token else "forged"
        before = self.task
        try:
            self.apply(lifecycle.hand_back(self.task, attempt=self.task.attempt, token=token, at=NOW))
        except FencedOutError:
            assert before.token != token
        else:
            assert self.task.losses == before.losses

    @rule()
    def cancel(self) -> None:
        before = self.task
        try:
            self.apply(lifecycle.cancel(self.task, at=NOW))
        except TaskFinishedError:
            assert before.status.is_terminal
        else:
            assert self.task.cancel_requested or self.task.status is TaskStatus.CANCELLED

    @rule(attempt=st.integers(1, 4))
    def refuse(self, attempt: int) -> None:
        before = self.task
        error = PayloadTooLargeError("too large")
        self.apply(lifecycle.refuse(self.task, attempt=attempt, error=error, at=NOW))
        due = before.status is TaskStatus.QUEUED and before.attempt == attempt
        assert (self.task.status is TaskStatus.FAILED) == (due or before.status is TaskStatus.FAILED)

    @precondition(lambda self: self.task.status is TaskStatus.RUNNING)
    @rule()
    def take_back(self) -> None:
        losses = self.task.losses
        self.apply(lifecycle.take_back(self.task, at=NOW))
        assert self.task.losses == losses

    @rule()
    def dispatch_again(self) -> None:
        before = self.task
        self.apply(lifecycle.dispatch_again(self.task))
        assert self.task.status is before.status

    @invariant()
    def the_stream_has_as_many_events_as_the_task_says(self) -> None:
        assert len(self.stream) == self.task.stream_length
        assert self.task.attempt_events <= self.task.stream_length

    @invariant()
    def it_ends_at_most_once_and_says_how(self) -> None:
        assert self.ends == int(self.task.status.is_terminal)
        assert (self.task.result is not None) == self.task.status.is_terminal
        if self.task.result is not None:
            assert TaskResult.model_validate_json(self.task.result).status is self.task.status

    @invariant()
    def it_has_an_owner_only_while_it_runs(self) -> None:
        assert (self.task.token is not None) == (self.task.status is TaskStatus.RUNNING)
        assert self.task.losses <= self.task.max_attempts


TestTaskLife = TaskLife.TestCase


def test_a_task_that_kills_its_instances_fails_with_that_reason() -> None:
    task = new_task(status=TaskStatus.RUNNING, instance_id="a", token="t", attempt=3, losses=2)
    ended = lifecycle.lose(task, at=NOW).task
    assert ended.status is TaskStatus.FAILED
    result = TaskResult.model_validate_json(ended.result or "")
    assert result.error is not None
    assert result.error.type == "llama_deploy.errors.AttemptsExhaustedError"
    assert "3 instances of service service" in result.error.message


def test_a_cancelled_task_whose_instance_dies_is_cancelled_and_not_tried_again() -> None:
    task = new_task(status=TaskStatus.RUNNING, instance_id="a", token="t", cancel_requested=True)
    assert lifecycle.lose(task, at=NOW).task.status is TaskStatus.CANCELLED


@pytest.mark.parametrize(
    ("policy", "status", "cancels"),
    [
        (SessionPolicy.ENQUEUE, TaskStatus.PENDING, 0),
        (SessionPolicy.PARALLEL, TaskStatus.QUEUED, 0),
        (SessionPolicy.INTERRUPT, TaskStatus.PENDING, 1),
    ],
)
def test_the_policy_decides_on_a_second_task(policy: SessionPolicy, status: TaskStatus, cancels: int) -> None:
    first = new_task(task_id="first", status=TaskStatus.RUNNING)
    admission = lifecycle.admit(new_task(), open_tasks=[first], policy=policy)
    assert admission.accepted.task.status is status
    assert len(admission.cancel) == cancels


def test_a_rejecting_session_names_the_task_that_it_works_on() -> None:
    first = new_task(task_id="first", status=TaskStatus.RUNNING)
    with pytest.raises(SessionBusyError, match="first"):
        lifecycle.admit(new_task(), open_tasks=[first], policy=SessionPolicy.REJECT)


def test_the_first_task_of_a_session_is_dispatched_whatever_the_policy() -> None:
    for policy in SessionPolicy:
        accepted = lifecycle.admit(new_task(), open_tasks=[], policy=policy).accepted
        assert accepted.dispatch
        assert accepted.task.status is TaskStatus.QUEUED
