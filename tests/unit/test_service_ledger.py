"""What an instance holds."""

from __future__ import annotations

from llama_deploy.services.run.time_budget import TimeBudget
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.types import TaskStatus
from llama_deploy.types.instance_protocol import AttemptOutcome


def outcome(task_id: str) -> AttemptOutcome:
    return AttemptOutcome(
        task_id=task_id,
        attempt=1,
        token="t",
        first=0,
        events=[],
        status=TaskStatus.SUCCEEDED,
    )


def held(ledger: Ledger) -> list[tuple[str, int]]:
    return [(item.task_id, item.attempt) for item in ledger.snapshot()[0]]


def test_an_attempt_is_known_from_the_asking_to_the_drop() -> None:
    ledger = Ledger()
    with ledger.claiming("a", 1):
        assert ledger.knows("a", 1)
        assert ledger.snapshot() == ([], [("a", 1)])
        ledger.hold("a", 1)
    assert ledger.snapshot()[1] == []
    assert ledger.knows("a", 1)
    ledger.drop("a", 1)
    assert not ledger.knows("a", 1)


def test_what_is_dropped_before_its_claim_is_answered_is_not_held() -> None:
    ledger = Ledger()
    with ledger.claiming("a", 1):
        ledger.drop("a", 1)
        assert not ledger.hold("a", 1)
    assert len(ledger) == 0
    with ledger.claiming("a", 1):
        assert ledger.hold("a", 1)
    assert held(ledger) == [("a", 1)]


def test_an_attempt_is_held_from_its_claim_until_it_is_dropped() -> None:
    ledger = Ledger()
    ledger.hold("a", 1)
    ledger.hold("a", 2)
    assert held(ledger) == [("a", 1), ("a", 2)]
    ledger.finish(outcome("a"), size=10, now=0.0, patience=1.0)
    assert len(ledger) == 2
    ledger.drop("a", 1)
    ledger.drop("a", 1)
    assert held(ledger) == [("a", 2)]


def test_the_inbox_only_grows_and_snapshots_stay_as_they_are() -> None:
    ledger = Ledger()
    ledger.hold("a", 1)
    before, _ = ledger.snapshot()
    ledger.seen("a", 1, inbox_seq=3)
    ledger.seen("a", 1, inbox_seq=2)
    ledger.seen("unknown", 1, inbox_seq=2)
    assert [item.inbox_seq for item in before] == [0]
    assert [item.inbox_seq for item in ledger.snapshot()[0]] == [3]


def test_an_unconfirmed_outcome_is_published_again_with_growing_patience() -> None:
    ledger = Ledger()
    ledger.hold("a", 1)
    assert ledger.overdue(100.0) == []
    ledger.finish(outcome("a"), size=10, now=0.0, patience=1.0)
    due = [second for second in range(12) if ledger.overdue(float(second))]
    assert due == [1, 3, 7]


def test_it_is_full_by_number_or_by_size() -> None:
    ledger = Ledger(max_outcomes=2, max_characters=100)
    for task_id, size in (("a", 10), ("b", 10), ("c", 200)):
        ledger.hold(task_id, 1)
        assert not ledger.is_full
        if task_id == "b":
            ledger.finish(outcome(task_id), size=size, now=0.0, patience=1.0)
            assert ledger.is_full
            ledger.drop("a", 1)
        else:
            ledger.finish(outcome(task_id), size=size, now=0.0, patience=1.0)
    assert ledger.is_full
    assert ledger.unconfirmed == 2
    ledger.drop("b", 1)
    assert ledger.is_full, "by size"
    ledger.drop("c", 1)
    assert not ledger.is_full
    assert ledger.unconfirmed == 0


def test_what_is_held_tells_how_long_it_has_been_running_until_it_has_ended() -> None:
    ledger = Ledger()
    ledger.hold("a", 1)
    ledger.measure("a", 1, TimeBudget(5.0, on_over=lambda: None, used=1.5))
    ledger.measure("unknown", 1, TimeBudget(None, on_over=lambda: None))
    ((held,), _) = ledger.snapshot()
    assert (held.running_seconds, held.timeout) == (1.5, 5.0)
    ledger.finish(outcome("a"), size=1, now=0.0, patience=1.0)
    ((held,), _) = ledger.snapshot()
    assert (held.running_seconds, held.timeout) == (None, None)
