"""The hops of a task with a route: what each makes of the task's row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from llama_deploy.control_plane.decisions import hops, lifecycle
from llama_deploy.control_plane.decisions.routing import NEW_ROUTE, Hop, Routing, run_input
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import Durability, TaskFailure, TaskResult, TaskStatus
from llama_deploy.types.instance_protocol import AttemptOutcome, EventPayload

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=5)
ASK = Hop(service_name="asks", input='{"question": 1}')
ANSWER = Hop(service_name="answers", input='{"question": 2}')
STOP = EventPayload(type="StopEvent", data={"result": "done"})


def new_task() -> TaskRecord:
    return TaskRecord(
        task_id="task",
        session_id="session",
        service_name="desk",
        input="{}",
        status=TaskStatus.PENDING,
        created_at=NOW,
        status_changed_at=NOW,
        max_attempts=3,
        routing=NEW_ROUTE,
    )


def running() -> TaskRecord:
    sent = hops.go_on(lifecycle.take_turn(new_task(), at=NOW).task, ASK, waiting=[], at=NOW).task
    return lifecycle.claim(
        sent, instance_id="a", attempt=1, token="t", at=NOW, durability=Durability.VOLATILE
    ).task


def outcome(*, stop_event: EventPayload | None = STOP) -> AttemptOutcome:
    return AttemptOutcome(
        task_id="task",
        attempt=1,
        token="t",
        first=0,
        events=[EventPayload(type="Progress", data={})],
        status=TaskStatus.SUCCEEDED,
        result="done",
        session_state={"seen": True},
        terminal_event=stop_event,
    )


def between_hops(*, stop_event: EventPayload | None = STOP) -> TaskRecord:
    return lifecycle.end(running(), outcome(stop_event=stop_event), at=NOW).task


def test_a_turn_asks_for_the_first_service_and_dispatches_nothing() -> None:
    turn = lifecycle.take_turn(new_task(), at=NOW)
    assert turn.route
    assert not turn.dispatch
    assert hops.is_unrouted(turn.task)
    assert not hops.is_unrouted(new_task())  # its turn has not come


def test_the_first_hop_is_the_first_attempt_at_the_named_service() -> None:
    waiting = lifecycle.take_turn(new_task(), at=NOW).task
    sent = hops.go_on(waiting, ASK, waiting=[ANSWER], at=LATER)
    assert sent.dispatch
    assert not sent.events
    assert (sent.task.status, sent.task.attempt, sent.task.target) == (TaskStatus.QUEUED, 1, "asks")
    assert run_input(sent.task) == ASK.input
    assert Routing.of(sent.task).waiting == [ANSWER]
    assert not hops.is_unrouted(sent.task)


def test_the_end_of_a_hop_frees_the_instance_and_forgets_the_run() -> None:
    before = running()._replace(has_run=True, journal_length=4, losses=1, deaths=2, running_seconds=2.0)
    ended = lifecycle.end(before, outcome(), at=LATER)
    assert ended.route
    assert ended.forget_run
    assert ended.drop_inbox
    assert [event.type for event in ended.events] == ["Progress"]
    task = ended.task
    assert hops.is_unrouted(task)
    assert (task.instance_id, task.token, task.claimed_at) == (None, None, None)
    assert (task.has_run, task.journal_length, task.losses, task.deaths) == (False, 0, 0, 0)
    assert task.running_seconds == 0.0
    assert task.durability is None


def test_a_hop_is_remembered_by_its_outcome_without_its_token_and_its_state() -> None:
    kept = Routing.of(between_hops()).outcome
    assert kept is not None
    assert (kept.result, kept.token, kept.events, kept.session_state) == ("done", "", [], None)


def test_the_end_of_a_hop_that_arrives_again_is_known() -> None:
    task = between_hops()
    assert lifecycle.is_repeated(task, outcome())
    assert not lifecycle.is_repeated(task, outcome().model_copy(update={"attempt": 2}))


def test_the_next_hop_is_the_next_attempt_and_streams_the_stop_event_of_the_last_one() -> None:
    task = between_hops()
    sent = hops.go_on(task, ANSWER, waiting=[], at=LATER)
    assert (sent.task.status, sent.task.attempt, sent.task.target) == (TaskStatus.QUEUED, 2, "answers")
    assert sent.events == [STOP]
    assert sent.task.stream_length == task.stream_length + 1
    assert Routing.of(sent.task).outcome is None


def test_a_hop_without_a_stop_event_adds_none() -> None:
    task = between_hops(stop_event=None)
    sent = hops.go_on(task, ANSWER, waiting=[], at=LATER)
    assert not sent.events
    assert sent.task.stream_length == task.stream_length


def test_the_stop_event_of_the_last_hop_ends_the_stream() -> None:
    result = TaskResult(task_id="task", result="done", status=TaskStatus.SUCCEEDED)
    ended = hops.conclude(between_hops(), result, at=LATER)
    assert ended.ended
    assert ended.events == [STOP]
    assert ended.task.status is TaskStatus.SUCCEEDED
    assert ended.task.routing is None


def test_a_failure_of_the_orchestrator_ends_the_stream_with_that_failure() -> None:
    failure = TaskFailure(type="builtins.ValueError", message="no such service")
    ended = hops.conclude(between_hops(), failure, at=LATER)
    assert ended.task.status is TaskStatus.FAILED
    (terminal,) = ended.events
    assert terminal.type == "TaskEnded"
    assert terminal.data["error"]["message"] == "no such service"
    assert TaskResult.model_validate_json(text_of(ended.task.result) or "").result == "no such service"
