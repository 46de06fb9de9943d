"""The judge of streams after faults sees what it is to see."""

from __future__ import annotations

import pytest
from tests.faults.ledger import CHAIN, Death, Faults
from tests.faults.stream_judge import Item, comebacks, page_of, stream_violations

from llama_deploy import NewAttempt
from llama_deploy.types import TaskEvent

A, B = 1, 2
KILLED = Faults([Death(A, 1.0)])


def progress(index: int, step: str, *, pid: int = A, attempt: int = 1) -> TaskEvent:
    data = {"step": step, "pid": pid}
    return TaskEvent(index=index, type="Progress", data=data, attempt=attempt, step_run=CHAIN.index(step))


def end(index: int, *, attempt: int = 1) -> TaskEvent:
    return TaskEvent(index=index, type="StopEvent", data={}, terminal=True, attempt=attempt, step_run=-1)


def marker(position: int, *, repeats_from: int, attempt: int = 2, reason: str = "lost") -> NewAttempt:
    return NewAttempt(attempt=attempt, position=position, repeats_from=repeats_from, reason=reason)


STRAIGHT: list[Item] = [*(progress(n, step) for n, step in enumerate(CHAIN)), end(5)]
"""No process has died."""
TAKEN_OVER: list[Item] = [
    *STRAIGHT[:3],
    marker(3, repeats_from=2),
    *(progress(n + 3, step, pid=B, attempt=2) for n, step in enumerate(CHAIN[2:])),
    end(6, attempt=2),
]
"""The third step had streamed its event, and ran again."""


def violations(items: list[Item], faults: Faults | None = None) -> list[str]:
    return stream_violations("chain", items, items, Faults() if faults is None else faults)


def test_a_straight_stream_is_in_order() -> None:
    assert violations(STRAIGHT) == []


def test_what_a_page_discards_may_come_again() -> None:
    assert violations(TAKEN_OVER, KILLED) == []
    assert [event.index for event in page_of(TAKEN_OVER)] == [0, 1, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([*STRAIGHT[:3], *STRAIGHT[4:]], "the stream has gaps"),
        (STRAIGHT[:5], "the terminal event is not the last one"),
        ([*TAKEN_OVER[:3], *TAKEN_OVER[4:]], "a page shows these steps so many times: {'three': 2}"),
        ([*TAKEN_OVER[:3], marker(3, repeats_from=1), *TAKEN_OVER[4:]], "so many times: {'two': 0}"),
        ([*TAKEN_OVER[:2], marker(3, repeats_from=2), *TAKEN_OVER[2:3], *TAKEN_OVER[4:]], "before event 2"),
        ([*TAKEN_OVER[:3], marker(3, repeats_from=2, attempt=1), *TAKEN_OVER[4:]], "after attempt 1, before"),
        ([*TAKEN_OVER[:5], progress(4, "four", attempt=1), *TAKEN_OVER[6:]], "after attempt 2 had begun"),
        ([*TAKEN_OVER[:3], marker(3, repeats_from=2, reason="moved"), *TAKEN_OVER[4:]], "nothing was done"),
    ],
)
def test_what_is_wrong_is_told(items: list[Item], told: str) -> None:
    assert told in " ".join(violations(items, KILLED))


def test_nothing_is_lost_without_a_fault() -> None:
    assert "nothing was done that explains" in " ".join(violations(TAKEN_OVER))


def test_two_readers_see_the_same() -> None:
    (found,) = stream_violations("chain", STRAIGHT[:2], STRAIGHT, Faults())
    assert "two readers have seen different streams" in found


def test_a_process_may_not_write_for_those_that_took_its_place() -> None:
    assert comebacks([A, A, B, B], KILLED) == []
    assert len(comebacks([A, B, A], KILLED)) == 1
