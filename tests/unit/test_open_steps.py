"""What a run streams again if its instance is lost now."""

from __future__ import annotations

from llama_deploy.services.run.steps.open_steps import OpenSteps
from llama_deploy.types.instance_protocol import UnfinishedSteps


def unfinished(first_event: int, runs: list[int] | None, begun: int) -> UnfinishedSteps:
    return UnfinishedSteps(first_event=first_event, runs=runs, begun=begun)


def test_without_steps_nothing_comes_again() -> None:
    assert OpenSteps().unfinished(streamed=7) == unfinished(7, [], 0)


def test_a_running_step_comes_again_from_where_it_began() -> None:
    steps = OpenSteps()
    assert [steps.begin("a", streamed=3), steps.begin("b", streamed=5)] == [0, 1]
    assert steps.unfinished(streamed=9) == unfinished(3, [0, 1], 2)


def test_a_step_that_has_ended_comes_again_until_its_end_is_stored() -> None:
    steps = OpenSteps()
    steps.begin("a", streamed=3)
    steps.begin("b", streamed=5)
    assert steps.end("a") == 0
    assert steps.unfinished(streamed=9) == unfinished(3, [0, 1], 2)
    assert steps.unfinished(streamed=9, storing=1) == unfinished(5, [1], 2)
    assert steps.begin("a", streamed=8) == 2, "another run in the same place"
    assert steps.end("b") == 1
    steps.stored(1)
    assert steps.unfinished(streamed=9) == unfinished(5, [1, 2], 3)
    steps.stored(1)
    assert steps.unfinished(streamed=9) == unfinished(8, [2], 3)


def test_an_end_without_a_beginning_counts_as_one() -> None:
    steps = OpenSteps()
    steps.begin("a", streamed=3)
    assert steps.end("unknown") is None
    steps.end("a")
    assert steps.unfinished(streamed=9, storing=1) == unfinished(3, [0], 1)
    assert steps.unfinished(streamed=9, storing=2) == unfinished(9, [], 1)


def test_very_many_steps_are_not_listed() -> None:
    steps = OpenSteps()
    for number in range(101):
        steps.begin(number, streamed=number)
    assert steps.unfinished(streamed=200) == unfinished(0, None, 101)
