"""To which topic an attempt goes while instances of several versions live."""

from __future__ import annotations

from typing import Final

import pytest

from llama_deploy.control_plane.decisions.destinations import (
    NOWHERE,
    SHARED,
    Demand,
    Destination,
    Fleet,
    Member,
    destination,
    needs_fitting_version,
    why_stranded,
)
from llama_deploy.control_plane.decisions.fit import StoredNeeds
from llama_deploy.testing.records import a_task
from llama_deploy.types.workflow_shape import RunNeeds, StepNeed, StepShape, WorkflowShape


def shape(*steps: str) -> WorkflowShape:
    shapes = {name: StepShape(takes=["StartEvent"]) for name in steps}
    return WorkflowShape(fingerprint="f", library_version="1", steps=shapes, classes={}, state="s")


SHAPES: Final = {"v1": shape("ask"), "v2": shape("ask", "tell"), "v3": shape("request")}
ASK: Final = StoredNeeds("f", RunNeeds(steps={"ask": StepNeed()}))


def fleet(*members: tuple[str, str | None, int]) -> Fleet:
    return Fleet.of("service", [Member(*member) for member in members], SHAPES)


def demand(version: str | None = "v1", *, pinned_to: str | None = None) -> Demand:
    return Demand(version, pinned_to, lambda: ASK)


def unread() -> StoredNeeds:
    raise AssertionError("what a run needs was read")


@pytest.mark.parametrize("member", [("a", "v1", 1), ("b", "v2", 1)])
def test_an_attempt_that_all_instances_can_run_goes_to_their_topic(member: tuple[str, str, int]) -> None:
    assert destination(demand(), fleet(("a", "v1", 1), member), sent={}) == SHARED


def test_without_instances_an_attempt_waits_in_their_topic() -> None:
    assert destination(demand(), fleet(), sent={}) == SHARED


def test_an_attempt_goes_to_the_instance_that_fits() -> None:
    assert destination(demand(), fleet(("a", "v3", 9), ("b", "v1", 0)), sent={}) == Destination("b")


def test_among_those_that_fit_the_one_with_most_free_slots_is_chosen() -> None:
    mixed = fleet(("a", "v3", 9), ("b", "v1", 2), ("c", "v2", 4))
    assert destination(demand(), mixed, sent={}) == Destination("c")
    assert destination(demand(), mixed, sent={"c": 3}) == Destination("b")


def test_an_instance_that_is_about_to_stop_is_chosen_only_if_no_other_fits() -> None:
    members = [Member("stops", "v1", 9, takes_last=True), Member("full", "v1", 0), Member("new", "v3", 4)]
    mixed = Fleet.of("service", members, SHAPES)
    assert destination(demand(), mixed, sent={"full": 40}) == Destination("full")
    left = Fleet.of("service", [members[0], members[2]], SHAPES)
    assert destination(demand(), left, sent={}) == Destination("stops")


def test_an_attempt_that_nobody_can_run_is_not_sent() -> None:
    assert destination(demand(), fleet(("a", "v3", 1)), sent={}) == NOWHERE


def test_an_attempt_that_was_refused_goes_to_one_instance() -> None:
    same = fleet(("a", "v1", 1), ("b", "v1", 2))
    assert destination(demand(), same, sent={}, may_share=False) == Destination("b")


def test_an_instance_of_the_version_that_ran_it_needs_no_look_at_the_journal() -> None:
    seen = Demand("v1", None, unread)
    assert destination(seen, fleet(("a", "v1", 1)), sent={}) == SHARED
    assert seen.fault("v1", fleet()) is None


def test_a_task_that_was_moved_goes_to_its_version() -> None:
    mixed = fleet(("a", "v1", 9), ("b", "v2", 0))
    assert destination(demand(pinned_to="v2"), mixed, sent={}) == Destination("b")
    begun_again = Demand(None, "v3", None)
    assert destination(begun_again, mixed, sent={}) == NOWHERE
    assert destination(begun_again, fleet(("c", "v3", 1)), sent={}) == SHARED


def test_a_task_without_a_journal_is_for_everybody() -> None:
    assert not needs_fitting_version(a_task())
    assert needs_fitting_version(a_task(has_run=True))
    assert needs_fitting_version(a_task(pinned_to="v1"))


def test_the_reason_names_each_version() -> None:
    assert why_stranded(demand(), fleet(("a", "v1", 0))) is None
    assert why_stranded(demand(), fleet()) == "no instance of service 'service' is alive"
    fault = "step 'ask' does not exist in this version, and the run needs it"
    old = "it does not say which steps it has: an older release runs it"
    assert why_stranded(demand(), fleet(("a", "v3", 1), ("b", "v3", 1), ("c", None, 1))) == (
        f"no living instance of service 'service' fits: version v3: {fault}; version unknown: {old}"
    )
