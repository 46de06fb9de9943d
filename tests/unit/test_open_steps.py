"""From which event on a run streams again if its instance is lost now."""

from __future__ import annotations

from llama_deploy.services.run.open_steps import OpenSteps


def test_without_steps_nothing_comes_again() -> None:
    assert OpenSteps().first_event(streamed=7) == 7


def test_a_running_step_comes_again_from_where_it_began() -> None:
    steps = OpenSteps()
    steps.begin("a", streamed=3)
    steps.begin("b", streamed=5)
    assert steps.first_event(streamed=9) == 3


def test_a_step_that_has_ended_comes_again_until_its_end_is_stored() -> None:
    steps = OpenSteps()
    steps.begin("a", streamed=3)
    steps.begin("b", streamed=5)
    steps.end("a")
    assert steps.first_event(streamed=9) == 3
    assert steps.first_event(streamed=9, storing=1) == 5
    steps.begin("a", streamed=8)  # another start in the same place
    steps.end("b")
    steps.stored(1)
    assert steps.first_event(streamed=9) == 5
    steps.stored(1)
    assert steps.first_event(streamed=9) == 8


def test_an_end_without_a_beginning_counts_as_one() -> None:
    steps = OpenSteps()
    steps.begin("a", streamed=3)
    steps.end("unknown")
    steps.end("a")
    assert steps.first_event(streamed=9, storing=1) == 3
    assert steps.first_event(streamed=9, storing=2) == 9
