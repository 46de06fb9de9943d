"""The judge of the fault tests sees what it is to see."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from tests.faults.ledger import CHAIN, Death, Faults, Ledger, takeover

A, B = 1, 2
STRAIGHT = [(float(n), word, step, A) for n, step in enumerate(CHAIN) for word in ("begin", "end")]


def violations(
    path: Path,
    lines: list[tuple[float, str, str, int]],
    *deaths: Death,
    answers: Sequence[tuple[float, float]] = (),
    streamed: Collection[tuple[str, int]] = (),
) -> list[str]:
    path.write_text("".join(f"{at} {word} it {step} {pid}\n" for at, word, step, pid in lines))
    faults = Faults(deaths=list(deaths), answers=list(answers))
    return Ledger(path).violations("chain", "it", faults, streamed=streamed)


def taken_over(at: float, *, step: str, since: float) -> list[tuple[float, str, str, int]]:
    """Return a run that process B goes on with from a step."""
    before = [line for line in STRAIGHT if line[0] <= since]
    after = [(at + n, word, name, B) for n, word, name, _ in STRAIGHT if n >= CHAIN.index(step)]
    return before + after


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.txt"


def test_a_straight_run_is_in_order(ledger: Path) -> None:
    assert violations(ledger, STRAIGHT) == []


def test_a_step_under_way_may_run_again(ledger: Path) -> None:
    lines = [line for line in taken_over(5.0, step="three", since=2.0) if line != (2.0, "end", "three", A)]
    assert violations(ledger, lines, Death(A, 2.5)) == []


def test_a_step_that_another_one_depends_on_may_not(ledger: Path) -> None:
    found = violations(ledger, taken_over(5.0, step="two", since=2.0), Death(A, 2.5))
    assert "task it (chain): step two has begun after a step that depends on it" in found


def test_a_step_may_not_run_again_long_after_its_end(ledger: Path) -> None:
    (found,) = violations(ledger, taken_over(5.0, step="three", since=2.0), Death(A, 4.0))
    assert "2.0 s lay between end and death" in found


def test_on_a_crowded_machine_it_may_run_again_later(ledger: Path) -> None:
    lines, death = taken_over(5.0, step="three", since=2.0), Death(A, 4.0)
    assert violations(ledger, lines, death, answers=[(0.0, 0.1), (2.5, 2.9)]) == []
    assert len(violations(ledger, lines, death, answers=[(0.0, 1.0), (2.5, 2.6)])) == 1


def test_nothing_runs_again_without_a_death(ledger: Path) -> None:
    (found,) = violations(ledger, taken_over(5.0, step="three", since=2.0))
    assert "process 1 had not died" in found


def test_a_process_that_woke_up_may_have_two_attempts_for_a_moment(ledger: Path) -> None:
    lines = [
        *STRAIGHT[:4],
        (8.1, "begin", "three", A),
        *((n + 6.2, word, name, A) for n, word, name, _ in STRAIGHT[4:]),
    ]
    assert violations(ledger, lines, Death(A, 1.5, 8.0)) == []
    (found,) = violations(ledger, lines, Death(A, 1.5, 4.0))
    assert "process 1 had not died" in found


def test_a_process_that_woke_up_may_go_on_with_an_attempt_of_its_own(ledger: Path) -> None:
    lines = [
        (0.0, "begin", "one", A),
        *((2.5 + n, word, "one", B) for n, word in enumerate(("begin", "end"))),
        *((4.1 + n / 100, word, name, A) for n, (_, word, name, _) in enumerate(STRAIGHT[2:])),
    ]
    pause = Death(A, 0.5, 4.0)
    found = violations(ledger, lines, pause)
    assert "4 steps have begun in processes that had lost the task" in "".join(found)
    streamed = {("one", B), *((name, A) for name in CHAIN[1:])}
    assert violations(ledger, lines, pause, streamed=streamed) == []


def test_a_step_that_did_not_end_is_missed(ledger: Path) -> None:
    assert violations(ledger, STRAIGHT[:-1]) == ["task it (chain): step five has not ended"]


def test_a_killed_process_may_have_been_dead_a_little_earlier(ledger: Path) -> None:
    """It was killed at 2.5, and seen to be dead at 6, when another one had gone on."""
    lines = [line for line in taken_over(5.0, step="three", since=2.0) if line != (2.0, "end", "three", A)]
    assert violations(ledger, lines, Death(A, 6.0, since=2.5)) == []
    assert takeover(Ledger(ledger).lines(), Death(A, 6.0, since=2.5)) == [4.5]
    (found,) = violations(ledger, lines, Death(A, 9.0, since=8.0))
    assert "process 1 had not died" in found


def test_what_has_ended_before_a_drain_may_not_run_again(ledger: Path) -> None:
    lines = taken_over(5.0, step="three", since=2.0)
    (found,) = violations(ledger, lines, Death(A, 4.5, since=4.0))
    assert "2.0 s lay between end and death" in found


def test_only_what_cannot_be_stored_starts_again_after_a_drain(ledger: Path) -> None:
    ledger.write_text(
        "".join(
            f"{at} {word} it {step} {pid}\n"
            for at, pid in ((1.0, A), (5.0, B))
            for step in (("prepare",) if pid == A else ("prepare", "ask", "finish"))
            for word in ("begin", "end")
        )
    )
    faults = Faults(drained=[Death(A, 4.0, since=3.0)])
    assert Ledger(ledger).violations("volatile", "it", faults) == []
    (found,) = Ledger(ledger).violations("human", "it", faults)
    assert "process 1 had not died" in found


def test_a_takeover_is_measured_from_the_death(ledger: Path) -> None:
    lines = taken_over(5.0, step="three", since=2.0)
    lines.remove((2.0, "end", "three", A))
    violations(ledger, lines)
    assert takeover(Ledger(ledger).lines(), Death(A, 2.5)) == [4.5]
