"""Until when an attempt that is due is not published, because nobody can take it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.decisions.dispatch_rules import DispatchPace, Takers, takers
from llama_deploy.state_stores.records import InstanceRecord
from llama_deploy.testing.records import NOW, a_task, an_instance
from llama_deploy.types import TaskStatus

PACE = DispatchPace(unclaimed=Backoff(15, longest=960), lost=Backoff(1, longest=60))
AGO = NOW - timedelta(seconds=1)


def instance(name: str, **changes: object) -> InstanceRecord:
    return an_instance(name)._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        ([], Takers.NOBODY),
        ([instance("silent", lease_expires_at=AGO)], Takers.NOBODY),
        ([instance("silent", lease_expires_at=AGO), instance("full", slots=2, running=3)], Takers.BUSY),
        ([instance("full", slots=1, running=1), instance("free", slots=2, running=1)], Takers.FREE),
        ([instance("full", slots=1, running=1), instance("has not said")], Takers.FREE),
        ([instance("lone", slots=1, alone=True)], Takers.NOBODY),
        ([instance("lone", slots=1, alone=True), instance("full", slots=1, running=1)], Takers.BUSY),
        ([instance("steps back", slots=0, alone=True)], Takers.BUSY),
    ],
)
def test_who_can_take_an_attempt(instances: list[InstanceRecord], expected: Takers) -> None:
    assert takers(instances, at=NOW) is expected


def held(by: Takers, *, waited: float, dispatches: int) -> float | None:
    task = a_task(status=TaskStatus.QUEUED, dispatches=dispatches)
    at = NOW + timedelta(seconds=waited)
    until = PACE.held_until(task, by, at=at)
    return None if until is None else (until - at).total_seconds()


def test_the_first_message_of_an_attempt_is_published_whoever_is_there() -> None:
    assert [held(by, waited=60, dispatches=0) for by in Takers] == [None, None, None]


def test_with_a_free_instance_an_attempt_is_published_again_at_its_pace() -> None:
    assert held(Takers.FREE, waited=15, dispatches=1) is None


def test_without_an_instance_it_is_not_published_again() -> None:
    assert held(Takers.NOBODY, waited=15, dispatches=1) == 960
    assert held(Takers.NOBODY, waited=1e6, dispatches=1) == 960


@pytest.mark.parametrize(("waited", "longer"), [(0, 15), (15, 15), (30, 30), (500, 500)])
def test_behind_full_instances_it_is_held_as_long_again_as_it_has_waited(
    waited: float, longer: float
) -> None:
    assert held(Takers.BUSY, waited=waited, dispatches=1) == longer


def test_behind_full_instances_it_is_published_again_once_in_the_longest_pause() -> None:
    assert held(Takers.BUSY, waited=960, dispatches=1) is None
    assert held(Takers.BUSY, waited=961, dispatches=2) == 960
    assert held(Takers.BUSY, waited=1921, dispatches=2) is None
