"""What is written of a run that has ended without success, and what a retry forgets of it."""

from __future__ import annotations

from typing import Any

import pytest
from workflows.events import Event
from workflows.runtime.types.results import StepWorkerFailed, StepWorkerResult
from workflows.runtime.types.step_id import StepId
from workflows.runtime.types.ticks import TickAddEvent, TickCancelRun, TickStepResult

from llama_deploy.services.run.inbox.waits import Wait, Waits
from llama_deploy.services.run.journal.journal_backlog import Backlog


def ended(step: str) -> TickStepResult:
    return result_of(step, StepWorkerResult(result=Event()))


def failed(step: str) -> TickStepResult:
    return result_of(step, StepWorkerFailed(exception=ValueError("no"), failed_at=1.0))


def result_of(step: str, result: Any) -> TickStepResult:
    return TickStepResult(step_id=StepId.root(step), worker_id=0, event=Event(), result=[result])


def sent() -> TickAddEvent:
    return TickAddEvent(event=Event())


A, B = ended("a"), ended("b")


@pytest.mark.parametrize(
    ("ticks", "has_failed", "kept"),
    [
        ([failed("x")], True, 0),
        ([sent(), failed("x")], True, 0),
        ([A, failed("x")], True, 1),
        ([A, sent(), B, failed("x")], True, 3),
        ([A, failed("x"), B], True, 1),
        ([failed("retried"), A, failed("x")], True, 2),
        ([A, TickCancelRun()], False, 1),
        ([A, failed("retried"), B], False, 3),
        ([sent()], False, 0),
    ],
)
def test_what_has_finished_is_kept_without_the_error_that_ends_the_run(
    ticks: list[Any], *, has_failed: bool, kept: int
) -> None:
    backlog = Backlog()
    for tick in ticks:
        backlog.add(tick)
    backlog.settle_rest([], failed=has_failed)
    assert backlog.is_ready is (kept > 0)
    assert len(backlog.take()[0]) == kept


def test_inbox_entries_that_the_run_has_taken_are_kept() -> None:
    backlog = Backlog()
    backlog.settle_rest([3], failed=True)
    ticks, mark = backlog.take()
    assert (ticks, mark.consumed) == ([], [3])


def test_an_error_that_is_written_before_stays() -> None:
    """It was retried since, so it does not end the run."""
    backlog = Backlog()
    backlog.add(failed("retried"))
    backlog.settle([])
    backlog.add(A)
    backlog.settle_rest([], failed=True)
    assert len(backlog.take()[0]) == 2


def test_time_limits_are_moved_together() -> None:
    waits = Waits.restore(Wait(step="s", waiter_id=str(n), due=10.0 * n) for n in (1, 2))
    waits.postpone(3600)
    assert [wait.due for wait in waits.all()] == [3610.0, 3620.0]
