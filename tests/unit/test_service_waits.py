"""The time limits of steps that wait."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workflows.events import Event, StartEvent

from llama_deploy.services.run.inbox.waits import Wait, Waits
from llama_deploy.types.instance_protocol import Parking
from llama_deploy.workflow_library import AddWaiter, StepId, TickStepResult

NOW = 1_800_000_000.0


def waits_after(timeout: float | None) -> Waits:
    """Return what is known when a step has begun to wait."""
    result: AddWaiter[Event] = AddWaiter(waiter_id="w", timeout=timeout, event_type=Event)
    waits = Waits()
    waits.on_tick(
        TickStepResult(
            step_id=StepId.from_str("ask"), worker_id=0, event=StartEvent(), result=[result], stamped_at=NOW
        )
    )
    return waits


@pytest.mark.parametrize("timeout", [None, math.inf, -math.inf, math.nan])
def test_a_limit_that_is_no_time_is_none(timeout: float | None) -> None:
    waits = waits_after(timeout)
    assert waits.seconds_to_next(now=NOW) is None
    assert waits.all() == []


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_other_limit_can_be_parked_with_and_written_down(timeout: float) -> None:
    waits = waits_after(timeout)
    left = Parking(inbox_seq=0, wake_in=waits.seconds_to_next(now=NOW)).wake_in
    assert left is not None
    assert left == pytest.approx(max(0.0, timeout), rel=1e-9, abs=5)
    (wait,) = waits.all()
    assert Wait.model_validate_json(wait.model_dump_json()) == wait
    assert wait.due == pytest.approx(NOW + timeout, rel=1e-9, abs=5)
