"""What is still to be written of a run, and how much is written."""

from __future__ import annotations

import pytest
from workflows.events import Event, StartEvent

from llama_deploy.services.run.journal import journal_backlog as module
from llama_deploy.services.run.journal.journal_backlog import Backlog, BacklogMark, JournalSize, ends_step
from llama_deploy.types.instance_protocol import RunHeader, RunRecord
from llama_deploy.types.run_points import RunPoint, mark_of
from llama_deploy.workflow_library import (
    AddWaiter,
    StepId,
    StepWorkerResult,
    TickAddEvent,
    TickCancelRun,
    TickStepResult,
    TickTimeout,
    WorkflowTick,
)


def result(*results: StepWorkerResult | AddWaiter[Event]) -> TickStepResult:
    return TickStepResult(
        step_id=StepId.from_str("step"), worker_id=0, event=StartEvent(), result=list(results)
    )


ARRIVAL = TickAddEvent(event=Event())
END = result(StepWorkerResult(result=None))
QUESTION = result(AddWaiter(waiter_id="w", timeout=None, event_type=Event))


def taken(backlog: Backlog) -> list[WorkflowTick]:
    return backlog.take()[0]


def test_an_event_alone_is_not_worth_a_write() -> None:
    backlog = Backlog()
    backlog.add(ARRIVAL)
    backlog.settle([])
    assert not backlog.is_ready
    backlog.add(END)
    assert backlog.has_news
    assert not backlog.is_ready, "what follows from the result is not known yet"
    backlog.settle([])
    assert backlog.is_ready
    assert taken(backlog) == [ARRIVAL, END]
    assert not backlog.has_news


def test_a_consumed_inbox_entry_is_worth_a_write() -> None:
    backlog = Backlog()
    backlog.add(ARRIVAL)
    backlog.settle([7])
    assert backlog.take() == ([ARRIVAL], BacklogMark(ticks=1, consumed=[7]))
    assert backlog.take() == ([], BacklogMark(consumed=[]))


@pytest.mark.parametrize("end", [TickTimeout(timeout=1), TickCancelRun()])
def test_what_ends_a_run_from_outside_is_not_written(end: WorkflowTick) -> None:
    backlog = Backlog()
    backlog.add(end)
    backlog.settle([1])
    assert taken(backlog) == []


def test_only_settled_ticks_are_taken() -> None:
    backlog = Backlog()
    backlog.add(END)
    backlog.settle([])
    backlog.add(QUESTION)
    assert backlog.settled == 1
    assert taken(backlog) == [END]
    backlog.settle([])
    assert taken(backlog) == [QUESTION]


def test_what_comes_after_a_snapshot_was_made_stays() -> None:
    backlog = Backlog()
    backlog.add(END)
    backlog.settle([1, 2])
    mark = backlog.mark([3])
    assert (mark.consumed, mark.step_ended) == ([1, 2, 3], True)
    backlog.add(QUESTION)
    backlog.settle([4])
    backlog.drop(mark)
    assert backlog.is_ready
    ticks, taken_mark = backlog.take()
    assert (ticks, taken_mark.consumed) == ([QUESTION], [4])


def test_nothing_is_left_to_write_after_a_snapshot_of_everything() -> None:
    backlog = Backlog()
    backlog.add(END)
    backlog.settle([1])
    backlog.drop(backlog.mark([]))
    assert not backlog.is_ready
    assert not backlog.has_news


def test_a_question_does_not_end_a_step() -> None:
    assert not ends_step([ARRIVAL, QUESTION])
    assert ends_step([QUESTION, END])


def test_the_size_counts_from_the_last_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_AFTER_TICKS", 5)
    monkeypatch.setattr(module, "COMPACT_AFTER_CHARACTERS", 100)
    header = RunHeader(fingerprint="f", library_version="1")
    size = JournalSize.of(RunRecord(header=header, entries=["\na\nb", "\nc"], next_seq=9))
    assert (size.seq, size.ticks, size.characters) == (9, 3, 6)
    assert not size.is_due(1)
    assert size.is_due(2)
    size.add("\n" + "x" * 99)
    assert size.seq == 10
    assert size.is_due(0)
    size.reset(80)
    assert (size.seq, size.ticks, size.characters) == (10, 0, 0)
    size.add("\n" + "x" * 120)
    assert not size.is_due(0), "the next snapshot is due at twice the length of the last one"


def test_a_snapshot_is_due_once_as_much_is_written_as_the_last_one_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "COMPACT_AFTER_TICKS", 5)
    header = RunHeader(fingerprint="f", library_version="1")
    first = JournalSize.of(RunRecord(header=header, entries=[], next_seq=0))
    assert first.is_due(5)
    first.reset(1_000)
    resumed = JournalSize.of(RunRecord(header=header, snapshot="x" * 1_000, entries=[], next_seq=0))
    for size in (first, resumed):
        assert not size.is_due(100), "a run with many pending events would be written again and again"
        for _ in range(9):
            size.add("\n" + "x" * 99)
            assert not size.is_due(100)
        size.add("\n" + "x" * 99)
        assert size.is_due(0)


def test_a_journal_is_at_another_point_after_each_write() -> None:
    header = RunHeader(fingerprint="f", library_version="1")
    assert JournalSize.of(None).point == RunPoint(0)
    record = RunRecord(header=header, entries=["\na"], next_seq=3, snapshots=2, state="stored")
    size = JournalSize.of(record)
    assert size.point == RunPoint(3, 2, mark_of("stored"))
    size.add("\nb")
    assert size.point[:2] == (4, 2)
    size.reset(10)
    assert size.point[:2] == (4, 3)
