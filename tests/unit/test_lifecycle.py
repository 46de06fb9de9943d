"""The life of a task under every order of happenings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.decisions import lifecycle, retries
from llama_deploy.control_plane.decisions.deaths import Blame
from llama_deploy.control_plane.decisions.takeovers import TakeoverReason, takeovers_of
from llama_deploy.control_plane.decisions.transitions import Transition
from llama_deploy.errors import (
    ConflictError,
    EventsMissingError,
    FencedOutError,
    JournalConflictError,
    PayloadTooLargeError,
    RetryRefusedError,
    SessionBusyError,
    TaskFinishedError,
)
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import Durability, SessionPolicy, TaskResult, TaskStatus
from llama_deploy.types.instance_protocol import (
    AttemptEvents,
    AttemptOutcome,
    EventPayload,
    JournalWrite,
    Parking,
    RunHeader,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
BACKOFF = Backoff(1.0, longest=3.0)
NEAR = [0, 0, 0, -1, 1]
"""From the number that fits, mostly none."""
ENDS = [TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.TIMED_OUT]


def new_task(**changes: object) -> TaskRecord:
    task = TaskRecord(
        task_id="task",
        session_id="session",
        service_name="service",
        input="{}",
        status=TaskStatus.PENDING,
        created_at=NOW,
        status_changed_at=NOW,
        max_attempts=3,
    )
    return task._replace(**changes)  # type: ignore[arg-type]


def events(count: int) -> list[EventPayload]:
    return [EventPayload(type="Progress", data={"n": n}) for n in range(count)]


def a_write(task: TaskRecord, **changes: Any) -> JournalWrite:
    fields = {
        "task_id": "task",
        "attempt": task.attempt,
        "token": task.token or "",
        "first": task.attempt_events,
        "events": [],
        "seq": task.journal_length,
        "header": RunHeader(fingerprint="f", library_version="1"),
    }
    return JournalWrite(**{**fields, **changes})


class TaskLife(RuleBasedStateMachine):
    """Applies any happening at any time, and remembers what has been seen."""

    def __init__(self) -> None:
        super().__init__()
        self.task = new_task(status_changed_at=LONG_AGO)
        self.stream: list[EventPayload] = []
        self.sent = 0
        self.claims = 0
        self.ends = 0
        self.journal: list[str | None] = []
        self.is_stored = False
        self.is_old = False
        """Whether the attempt has lived for `HARMLESS_AFTER` at the time of a write to the journal."""
        self.deaths = 0
        """How many deaths were charged to the task that were not forgiven."""
        self.present = 0
        """At how many deaths it was present that were not forgiven."""

    def apply(self, transition: Transition) -> None:
        before = self.task
        self.task = transition.task
        self.stream.extend(transition.events)
        if transition.ended and not before.status.is_terminal:
            self.ends += 1
        if transition.forget_run:
            self.is_stored = False
            self.journal = []
        assert self.task.attempt >= before.attempt
        if self.task.status is before.status:
            assert self.task.status_changed_at == before.status_changed_at
        else:
            assert self.task.status_changed_at > LONG_AGO
        written = transition.journal
        if written is not None and (written.parking is not None or (written.step_ended and self.is_old)):
            self.deaths = self.present = 0
        if transition.dispatch:
            assert self.task.status is TaskStatus.QUEUED

    @initialize(attempts=st.sampled_from([0, 1, 1, 1]))
    def begin(self, attempts: int) -> None:
        """Most lives begin with a running attempt: few get there by chance before they are cancelled."""
        for _ in range(attempts):
            self.take_turn()
            self.claim("a", 0)

    @precondition(lambda self: self.task.status is TaskStatus.PENDING)
    @rule()
    def take_turn(self) -> None:
        self.apply(lifecycle.take_turn(self.task, at=NOW))

    @rule(instance=st.sampled_from(["a", "b"]), off=st.sampled_from(NEAR))
    def claim(self, instance: str, off: int) -> None:
        before = self.task
        attempt = before.attempt + off
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

    @rule(
        off=st.sampled_from(NEAR),
        own=st.sampled_from([True, True, True, False]),
        count=st.integers(0, 2),
        shift=st.sampled_from([*NEAR, -2]),
        entry=st.sampled_from([None, "entry"]),
        step_lasts=st.sampled_from([None, timedelta(), lifecycle.HARMLESS_AFTER]),
        parks=st.booleans(),
        unseen=st.booleans(),
    )
    def write_journal(
        self,
        off: int,
        *,
        own: bool,
        count: int,
        shift: int,
        entry: str | None,
        step_lasts: timedelta | None,
        parks: bool,
        unseen: bool,
    ) -> None:
        before = self.task
        unseen = unseen and before.inbox_length > 0
        self.is_old = bool(step_lasts)
        at = NOW + (step_lasts or timedelta())
        attempt = before.attempt + off
        write = a_write(
            before,
            attempt=attempt,
            token=before.token if own and before.token else "forged",
            events=events(count),
            seq=max(before.journal_length + shift, 0),
            entry=entry,
            step_ended=step_lasts is not None,
            parking=Parking(inbox_seq=before.inbox_length - unseen) if parks else None,
        )
        transition: list[Transition] = []

        def act() -> Transition:
            transition.append(lifecycle.journal(before, write, at=at))
            return transition[0]

        try:
            self.report(attempt, write.token, write.first, act)
        except JournalConflictError:
            assert self.task is before
            assert write.seq > before.journal_length or (parks and write.seq < before.journal_length)
            return
        if not transition:
            return
        if (stored := transition[0].journal) is not None:
            assert stored is write
            self.is_stored = True
            self.journal += [entry] if entry is not None else []
        elif write.seq == before.journal_length:
            assert self.task.status is TaskStatus.CANCELLED
        if parks and not self.task.status.is_terminal:
            assert self.task.status is (TaskStatus.QUEUED if unseen else TaskStatus.WAITING)
        self.sent = self.task.attempt_events

    @rule()
    def wake(self) -> None:
        before = self.task
        self.apply(lifecycle.wake(before, at=NOW))
        if before.status is TaskStatus.WAITING:
            assert self.task.status is TaskStatus.QUEUED
            assert (self.task.attempt, self.task.losses) == (before.attempt + 1, before.losses)
        else:
            assert self.task is before

    @precondition(lambda self: not self.task.status.is_terminal)
    @rule()
    def receive_an_event(self) -> None:
        self.apply(lifecycle.wake(self.task._replace(inbox_length=self.task.inbox_length + 1), at=NOW))
        assert self.task.status is not TaskStatus.WAITING

    @precondition(lambda self: self.task.status is TaskStatus.RUNNING)
    @rule(blame=st.sampled_from([*Blame, Blame.CHARGED]))
    def die(self, blame: Blame) -> None:
        attempt = self.task.attempt
        if not self.task.cancel_requested:
            self.deaths += blame is Blame.CHARGED
            self.present += blame is not Blame.SPARED
        self.apply(lifecycle.move_on(self.task, blame, at=NOW, backoff=BACKOFF))
        if self.task.status.is_terminal:
            assert self.task.cancel_requested or self.deaths == self.task.max_attempts
        else:
            assert self.task.attempt == attempt + 1
            assert lifecycle.is_held_back(self.task) is (blame is Blame.CHARGED and self.deaths > 1)

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
            assert self.task.status is not TaskStatus.WAITING

    @rule(version=st.sampled_from(["v1", "v2"]), again=st.booleans())
    def move(self, version: str, *, again: bool) -> None:
        before = self.task
        try:
            if again:
                self.apply(lifecycle.start_again(before, version, at=NOW))
            else:
                self.apply(lifecycle.move(before, version))
        except TaskFinishedError:
            assert before.status.is_terminal
        except ConflictError:
            moves = (TaskStatus.QUEUED, TaskStatus.WAITING)
            assert before.status not in moves or not (again or before.has_run)
        else:
            assert self.task.pinned_to == version
            if again:
                assert not self.task.has_run
            if self.task.attempt > before.attempt:
                assert self.task.losses == self.task.deaths == 0
                self.deaths = self.present = 0
            else:
                assert (self.task.attempt, self.task.status) == (before.attempt, before.status)

    @precondition(lambda self: self.task.status is TaskStatus.RUNNING)
    @rule(waited=st.booleans(), used=st.sampled_from([1.0, 9.0]), limit=st.sampled_from([None, 5.0]))
    def block(self, *, waited: bool, used: float, limit: float | None) -> None:
        before, at = self.task, NOW + timedelta(seconds=60 if waited else 0)
        overdue = lifecycle.end_blocked(before, running_seconds=used, timeout=limit, at=at)
        if before.cancel_requested and waited:
            expected = TaskStatus.CANCELLED
        else:
            expected = TaskStatus.TIMED_OUT if limit and used > limit else TaskStatus.RUNNING
        if overdue is not None:
            self.apply(overdue)
        assert self.task.status is expected

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
        self.apply(lifecycle.take_back(self.task, reason=TakeoverReason.LOST, at=NOW))
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
    def takeovers_are_in_the_order_of_the_stream(self) -> None:
        known = takeovers_of(self.task)
        assert [(new.position, new.attempt) for new in known] == sorted(
            (new.position, new.attempt) for new in known
        )
        for new in known:
            assert 0 <= new.repeats_from <= new.position <= len(self.stream)
            assert 1 < new.attempt <= self.task.attempt

    @invariant()
    def it_ends_at_most_once_and_says_how(self) -> None:
        assert self.ends == int(self.task.status.is_terminal)
        assert (self.task.result is not None) == self.task.status.is_terminal
        if self.task.result is not None:
            assert TaskResult.model_validate_json(text_of(self.task.result) or "").status is self.task.status

    @invariant()
    def it_has_an_owner_only_while_it_runs(self) -> None:
        assert (self.task.token is not None) == (self.task.status is TaskStatus.RUNNING)
        assert self.task.losses == self.deaths <= self.task.max_attempts
        assert self.task.losses <= self.task.deaths
        assert self.task.deaths == self.present or self.task.cancel_requested
        if self.task.status is TaskStatus.WAITING:
            assert self.task.instance_id is None

    @invariant()
    def its_journal_is_as_long_as_it_says_and_ends_with_a_success(self) -> None:
        assert self.task.journal_length == len(self.journal)
        assert self.task.has_run is self.is_stored
        assert not (self.task.has_run and self.task.status is TaskStatus.SUCCEEDED)

    @rule()
    def retry(self) -> None:
        try:
            retry = retries.retry(self.task, task_id="again", origin="last_step", routing=None, at=NOW)
        except RetryRefusedError:
            assert not (self.task.status.is_terminal and self.task.has_run)
        else:
            assert self.task.status.is_terminal
            assert retry.copies_run is self.task.has_run
            assert (retry.task.has_run, retry.task.journal_length) == (self.is_stored, len(self.journal))
            assert (retry.task.status, retry.task.attempt, retry.task.losses) == (TaskStatus.PENDING, 1, 0)

    @invariant()
    def a_timer_is_of_a_parked_run(self) -> None:
        assert self.task.wake_at is None or self.task.status is TaskStatus.WAITING


TestTaskLife = TaskLife.TestCase


def test_a_task_that_kills_its_instances_fails_with_that_reason() -> None:
    task = new_task(status=TaskStatus.RUNNING, instance_id="a", token="t", attempt=3, losses=2)
    ended = lifecycle.lose(task, at=NOW, backoff=BACKOFF).task
    assert ended.status is TaskStatus.FAILED
    result = TaskResult.model_validate_json(text_of(ended.result) or "")
    assert result.error is not None
    assert result.error.type == "llama_deploy.errors.AttemptsExhaustedError"
    assert "3 processes of service service ended" in result.error.message


def test_attempts_after_the_second_loss_are_held_back_longer_each_time() -> None:
    task = new_task(max_attempts=10)
    pauses = []
    for losses in range(1, 6):
        task = task._replace(status=TaskStatus.RUNNING, instance_id="a", token="t")
        lost = lifecycle.lose(task, at=NOW, backoff=BACKOFF)
        task = lost.task
        assert (task.status, task.losses) == (TaskStatus.QUEUED, losses)
        assert lost.dispatch is not lifecycle.is_held_back(task)
        pauses.append(None if task.redispatch_at is None else (task.redispatch_at - NOW).total_seconds())
        again = lifecycle.dispatch_again(task)
        assert again.dispatch
        assert not lifecycle.is_held_back(again.task)
    assert pauses == [None, 1.0, 2.0, 3.0, 3.0]


def test_a_run_that_gets_further_between_deaths_does_not_end() -> None:
    task = new_task(status=TaskStatus.QUEUED, dispatches=1)
    for step in range(10):
        task = claimed(task)
        write = a_write(task, entry=f"step {step}", step_ended=True)
        task = lifecycle.journal(task, write, at=NOW + lifecycle.HARMLESS_AFTER).task
        lost = lifecycle.lose(task, at=NOW, backoff=BACKOFF)
        assert lost.dispatch
        task = lost.task
        assert (task.status, task.losses) == (TaskStatus.QUEUED, 1)


@pytest.mark.parametrize(
    "changes",
    [{"events": events(3)}, {"entry": "an answer", "consumed": [1]}, {"snapshot": "{}"}, {"state": "{}"}],
)
def test_a_run_that_only_notes_what_came_gets_no_further(changes: dict[str, Any]) -> None:
    task = new_task(status=TaskStatus.QUEUED, dispatches=1, inbox_length=1)
    for losses in range(1, 4):
        task = claimed(task)
        task = lifecycle.journal(task, a_write(task, **changes), at=NOW).task
        task = lifecycle.lose(task, at=NOW, backoff=BACKOFF).task
        assert task.losses == losses
    assert task.status is TaskStatus.FAILED


def test_a_run_that_gets_further_but_kills_its_instances_soon_ends() -> None:
    task = new_task(status=TaskStatus.QUEUED, dispatches=1)
    while not task.status.is_terminal:
        task = claimed(task)
        write = a_write(task, entry="a step that goes round and round", step_ended=True)
        task = lifecycle.journal(task, write, at=NOW + lifecycle.HARMLESS_AFTER / 2).task
        task = lifecycle.lose(task, at=NOW, backoff=BACKOFF).task
    assert task.losses == task.max_attempts


def test_parking_forgives_earlier_losses() -> None:
    task = running(losses=2, deaths=3)
    parked = lifecycle.journal(task, a_write(task, parking=Parking(inbox_seq=0)), at=NOW).task
    assert (parked.status, parked.losses, parked.deaths) == (TaskStatus.WAITING, 0, 0)


@given(st.lists(st.sampled_from(["dies", "dies", "steps", "notes", "parks", "returns", "is taken"])))
def test_it_fails_when_as_many_instances_have_died_as_may_and_got_no_further(happenings: list[str]) -> None:
    task, deaths = new_task(status=TaskStatus.QUEUED), 0
    for happening in happenings:
        task = claimed(task)
        if happening == "dies":
            deaths += 1
            task = lifecycle.lose(task, at=NOW, backoff=BACKOFF).task
        elif happening == "returns":
            task = lifecycle.hand_back(task, attempt=task.attempt, token="t", at=NOW).task
        elif happening == "is taken":
            task = lifecycle.take_back(task, reason=TakeoverReason.LOST, at=NOW).task
        else:
            parking = Parking(inbox_seq=0) if happening == "parks" else None
            write = a_write(task, entry="entry", step_ended=happening == "steps", parking=parking)
            written = lifecycle.journal(task, write, at=NOW + lifecycle.HARMLESS_AFTER)
            task = lifecycle.wake(written.task, at=NOW).task
            deaths = deaths if happening == "notes" else 0
        assert task.losses == deaths
        assert task.status.is_terminal is (deaths == task.max_attempts)
        if task.status.is_terminal:
            return


def test_a_cancelled_task_whose_instance_dies_is_cancelled_and_not_tried_again() -> None:
    task = new_task(status=TaskStatus.RUNNING, instance_id="a", token="t", cancel_requested=True)
    assert lifecycle.lose(task, at=NOW, backoff=BACKOFF).task.status is TaskStatus.CANCELLED


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


@pytest.mark.parametrize("policy", SessionPolicy)
def test_only_one_policy_lets_a_task_pass_those_that_wait(policy: SessionPolicy) -> None:
    waiting = [
        new_task(task_id="parked", status=TaskStatus.WAITING),
        new_task(task_id="in memory", status=TaskStatus.RUNNING, waiting_since=NOW),
    ]
    overtakes = policy in (SessionPolicy.PARALLEL, SessionPolicy.PARALLEL_WHILE_WAITING)
    if policy is not SessionPolicy.REJECT:
        admission = lifecycle.admit(new_task(), open_tasks=waiting, policy=policy)
        assert admission.accepted.dispatch is overtakes


@pytest.mark.parametrize("status", [TaskStatus.PENDING, TaskStatus.QUEUED, TaskStatus.RUNNING])
def test_a_task_that_passes_those_that_wait_does_not_pass_others(status: TaskStatus) -> None:
    ahead = [new_task(task_id="a", status=TaskStatus.WAITING), new_task(task_id="b", status=status)]
    admission = lifecycle.admit(new_task(), open_tasks=ahead, policy=SessionPolicy.PARALLEL_WHILE_WAITING)
    assert admission.accepted.task.status is TaskStatus.PENDING


def test_a_rejecting_session_names_the_task_that_it_works_on() -> None:
    first = new_task(task_id="first", status=TaskStatus.RUNNING)
    with pytest.raises(SessionBusyError, match="first"):
        lifecycle.admit(new_task(), open_tasks=[first], policy=SessionPolicy.REJECT)


def test_the_first_task_of_a_session_is_dispatched_whatever_the_policy() -> None:
    for policy in SessionPolicy:
        accepted = lifecycle.admit(new_task(), open_tasks=[], policy=policy).accepted
        assert accepted.dispatch
        assert accepted.task.status is TaskStatus.QUEUED


def claimed(task: TaskRecord) -> TaskRecord:
    return lifecycle.claim(task, instance_id="a", attempt=task.attempt, token="t", at=NOW).task


def running(**changes: object) -> TaskRecord:
    return new_task(status=TaskStatus.RUNNING, instance_id="a", token="t", claimed_at=NOW, **changes)


def test_a_write_appends_and_the_same_again_does_not() -> None:
    task = running()
    write = a_write(task, entry="first", events=events(2), running_seconds=1.5)
    stored = lifecycle.journal(task, write, at=NOW)
    assert (stored.journal, len(stored.events)) == (write, 2)
    assert (stored.task.journal_length, stored.task.running_seconds) == (1, 1.5)
    again = lifecycle.journal(stored.task, write, at=NOW)
    assert again == Transition(stored.task, [])


def test_a_write_that_leaves_a_gap_is_refused_for_good() -> None:
    with pytest.raises(JournalConflictError, match="has 2 entries") as refused:
        lifecycle.journal(running(journal_length=2), a_write(running(), seq=3, entry="x"), at=NOW)
    assert refused.value.expected == 2
    assert not refused.value.retriable


def test_parking_that_does_not_follow_the_journal_is_refused() -> None:
    task = running(has_run=True, journal_length=2)
    with pytest.raises(JournalConflictError):
        lifecycle.journal(task, a_write(task, seq=1, parking=Parking(inbox_seq=0)), at=NOW)


def test_a_run_that_only_waits_leaves_its_instance() -> None:
    task = running(attempt_events=1, inbox_length=2)
    write = a_write(task, snapshot="{}", parking=Parking(inbox_seq=2, wake_in=30.0))
    parked = lifecycle.journal(task, write, at=NOW)
    assert parked.journal is write
    assert not parked.dispatch
    assert (parked.task.status, parked.task.has_run) == (TaskStatus.WAITING, True)
    assert (parked.task.instance_id, parked.task.token, parked.task.claimed_at) == (None, None, None)
    assert parked.task.wake_at == NOW + timedelta(seconds=30)
    with pytest.raises(FencedOutError, match="waiting"):
        lifecycle.journal(parked.task, write, at=NOW)
    woken = lifecycle.wake(parked.task, at=NOW)
    assert woken.dispatch
    assert (woken.task.attempt, woken.task.losses, woken.task.wake_at) == (2, 0, None)
    assert woken.task.has_run


def test_a_timer_beyond_all_reason_is_no_error() -> None:
    write = a_write(running(), parking=Parking(inbox_seq=0, wake_in=1e308))
    wake_at = lifecycle.journal(running(), write, at=NOW).task.wake_at
    assert wake_at is not None
    assert wake_at > NOW + timedelta(days=365)


def test_a_run_that_has_not_seen_an_event_goes_on_at_once() -> None:
    task = running(inbox_length=2)
    write = a_write(task, events=events(1), entry="x", parking=Parking(inbox_seq=1, wake_in=30.0))
    going_on = lifecycle.journal(task, write, at=NOW)
    assert going_on.dispatch
    assert going_on.journal is write
    assert len(going_on.events) == 1
    assert (going_on.task.status, going_on.task.attempt) == (TaskStatus.QUEUED, 2)
    assert (going_on.task.wake_at, going_on.task.losses) == (None, 0)


def test_a_run_whose_cancellation_was_asked_for_ends_instead_of_waiting() -> None:
    task = running(cancel_requested=True, has_run=True, journal_length=3)
    write = a_write(task, events=events(1), parking=Parking(inbox_seq=0))
    ended = lifecycle.journal(task, write, at=NOW)
    assert ended.task.status is TaskStatus.CANCELLED
    assert ended.journal is write
    assert not ended.forget_run
    assert [event.type for event in ended.events] == ["Progress", "TaskEnded"]


def test_a_parked_task_is_cancelled_at_once() -> None:
    parked = new_task(status=TaskStatus.WAITING, has_run=True, journal_length=1, wake_at=NOW)
    cancelled = lifecycle.cancel(parked, at=NOW)
    assert cancelled.task.status is TaskStatus.CANCELLED
    assert not cancelled.notify_cancel


@pytest.mark.parametrize("status", ENDS)
def test_the_journal_is_kept_unless_the_task_succeeds(status: TaskStatus) -> None:
    task = running(has_run=True, journal_length=3, running_seconds=2.0)
    outcome = AttemptOutcome(task_id="task", attempt=1, token="t", first=0, events=[], status=status)
    ended = lifecycle.end(task, outcome, at=NOW)
    is_kept = status is not TaskStatus.SUCCEEDED
    assert ended.forget_run is not is_kept
    assert (ended.task.has_run, ended.task.journal_length) == ((True, 3) if is_kept else (False, 0))


def test_the_journal_of_a_hop_is_not_kept() -> None:
    task = running(has_run=True, journal_length=3, routing="{}", cancel_requested=True)
    outcome = AttemptOutcome(
        task_id="task", attempt=1, token="t", first=0, events=[], status=TaskStatus.FAILED
    )
    ended = lifecycle.end(task, outcome, at=NOW)
    assert (ended.task.status, ended.task.has_run, ended.forget_run) == (TaskStatus.CANCELLED, False, True)


def test_a_lost_attempt_keeps_the_journal() -> None:
    task = running(has_run=True, journal_length=4, running_seconds=2.5)
    for following in (
        lifecycle.lose(task, at=NOW, backoff=BACKOFF).task,
        lifecycle.take_back(task, reason=TakeoverReason.LOST, at=NOW).task,
    ):
        assert (following.has_run, following.journal_length, following.running_seconds) == (True, 4, 2.5)


def test_a_run_that_cannot_be_stored_starts_from_its_beginning_in_the_next_attempt() -> None:
    task = running(has_run=True, journal_length=4, running_seconds=2.5)
    volatile = lifecycle.journal(task, a_write(task, seq=4, volatile="ctx.store['llm'] holds an LLM"), at=NOW)
    assert (volatile.journal, volatile.forget_run, volatile.restore_inbox) == (None, True, True)
    assert (volatile.task.status, volatile.task.durability) == (TaskStatus.RUNNING, Durability.VOLATILE)
    assert volatile.task.volatile_reason == "ctx.store['llm'] holds an LLM"
    assert (volatile.task.has_run, volatile.task.journal_length, volatile.task.running_seconds) == (
        False,
        0,
        0,
    )
    # The answer was lost, and the write is sent again.
    again = lifecycle.journal(volatile.task, a_write(task, seq=4, volatile="another reason"), at=NOW)
    assert (again.task, again.forget_run, again.restore_inbox) == (volatile.task, False, False)


def test_a_volatile_run_stays_volatile() -> None:
    lost = lifecycle.lose(running(durability=Durability.VOLATILE), at=NOW, backoff=BACKOFF).task
    claimed = lifecycle.claim(
        lost, instance_id="i2", attempt=2, token="t2", at=NOW, durability=Durability.STEP
    )
    assert claimed.task.durability is Durability.VOLATILE


def test_a_task_without_a_journal_has_nothing_to_forget() -> None:
    assert not lifecycle.cancel(new_task(), at=NOW).forget_run


def test_a_blocked_task_gets_time_to_be_cancelled_by_its_instance() -> None:
    asked = lifecycle.cancel(running(), at=NOW).task
    again = lifecycle.cancel(asked, at=NOW + timedelta(seconds=1)).task
    assert again.cancel_requested_at == NOW, "asking again does not give it more time"
    for seconds, status in ((1.9, None), (2.1, TaskStatus.CANCELLED)):
        at = NOW + timedelta(seconds=seconds)
        ended = lifecycle.end_blocked(again, running_seconds=1.0, timeout=None, at=at)
        assert (None if ended is None else ended.task.status) is status


def test_a_cancellation_that_an_older_release_has_stored_does_not_wait() -> None:
    asked = running(cancel_requested=True)
    ended = lifecycle.end_blocked(asked, running_seconds=None, timeout=None, at=NOW)
    assert ended is not None
    assert ended.task.status is TaskStatus.CANCELLED


def test_a_late_outcome_of_a_blocked_task_is_refused() -> None:
    ended = lifecycle.end_blocked(running(), running_seconds=2.5, timeout=2.0, at=NOW)
    assert ended is not None
    assert ended.task.status is TaskStatus.TIMED_OUT
    assert ended.task.result is not None
    error = TaskResult.model_validate_json(text_of(ended.task.result) or "").error
    assert error is not None
    assert (error.type, "timed out after 2.0 s" in error.message) == (
        "workflows.errors.WorkflowTimeoutError",
        True,
    )
    late = AttemptOutcome(
        task_id="task",
        attempt=1,
        token="token",
        first=0,
        events=[],
        status=TaskStatus.SUCCEEDED,
    )
    with pytest.raises(FencedOutError):
        lifecycle.end(ended.task, late, at=NOW)


def test_a_moved_run_is_continued_by_its_version_alone_until_it_is_stored_again() -> None:
    queued = lifecycle.lose(running(has_run=True, journal_length=1), at=NOW, backoff=BACKOFF).task
    moved = lifecycle.move(queued, "v2")
    assert (moved.dispatch, moved.task) == (True, queued._replace(pinned_to="v2"))
    owned = lifecycle.claim(
        moved.task, instance_id="b", attempt=queued.attempt, token="t", at=NOW, version="v2"
    ).task
    assert (owned.version, owned.pinned_to) == ("v2", "v2"), "the instance may die before it stores anything"
    assert lifecycle.journal(owned, a_write(owned, entry="2"), at=NOW).task.pinned_to is None


def test_a_parked_run_stays_parked_when_it_is_moved() -> None:
    parked = new_task(status=TaskStatus.WAITING, has_run=True, journal_length=1)
    assert lifecycle.move(parked, "v2") == Transition(parked._replace(pinned_to="v2"))


def test_an_attempt_that_is_delayed_stays_so_when_it_is_moved() -> None:
    held = new_task(status=TaskStatus.QUEUED, has_run=True, dispatches=0, redispatch_at=NOW)
    assert not lifecycle.move(held, "v2").dispatch


def test_a_run_that_begins_again_forgets_what_it_was() -> None:
    parked = new_task(
        status=TaskStatus.WAITING, has_run=True, journal_length=3, running_seconds=9.0, losses=1, version="v1"
    )
    again = lifecycle.start_again(parked, "v2", at=NOW)
    assert (again.dispatch, again.forget_run, again.restore_inbox) == (True, True, True)
    fresh = again.task
    assert (fresh.has_run, fresh.journal_length, fresh.running_seconds, fresh.losses) == (False, 0, 0.0, 0)
    assert (fresh.version, fresh.pinned_to, fresh.attempt) == (None, "v2", parked.attempt + 1)
    assert lifecycle.start_again(fresh, "v2", at=NOW) == Transition(fresh), "a client may repeat the request"


def test_a_queued_task_that_begins_again_has_been_queued_since_before() -> None:
    queued = new_task(status=TaskStatus.QUEUED, status_changed_at=LONG_AGO)
    begun = lifecycle.start_again(queued, "v2", at=NOW).task
    assert (begun.attempt, begun.status_changed_at) == (queued.attempt + 1, LONG_AGO)
