"""What a supervisor does about a child that is silent or blocked."""

from __future__ import annotations

from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.supervisor.silence import Silence, Verdict

INTERVAL = 1.0
LIMIT = 10.0
LOOK = 0.5
"""Seconds between two looks."""


Verdicts: TypeAlias = list[tuple[float, Verdict]]


def watched(
    *,
    until: float,
    beats: dict[float, float],
    stopped: tuple[float, float] = (0.0, 0.0),
    unwatched: tuple[float, float] = (0.0, 0.0),
) -> Verdicts:
    """Return what was judged other than `FINE`, each with its time.

    Args:
        until: When to end.
        beats: For how long the loop was blocked, by the time of each heartbeat.
        stopped: From when to when the child is stopped.
        unwatched: From when to when nobody judges.
    """
    silence = Silence(LIMIT)
    found: Verdicts = []
    for number in range(int(until / LOOK) + 1):
        now = number * LOOK
        if unwatched[0] < now < unwatched[1]:
            continue
        if now in beats:
            silence.heard(now, interval=INTERVAL, blocked_seconds=beats[now])
        verdict = silence.judge(now, is_running=not stopped[0] <= now < stopped[1])
        if verdict is not Verdict.FINE:
            found.append((now, verdict))
            if verdict is Verdict.REPLACE:
                break
    return found


def repeated(*times: float) -> Verdicts:
    return [(at, Verdict.REPEAT) for at in times]


HEALTHY = {float(at): 0.0 for at in range(100)}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        pytest.param({"until": 50, "beats": HEALTHY}, [], id="healthy"),
        pytest.param({"until": 50, "beats": {}}, [], id="never heard of"),
        pytest.param({"until": 4, "beats": {0.0: 0.0}}, repeated(1.5, 2.5, 3.5), id="silent"),
        pytest.param(
            {"until": 50, "beats": {0.0: 0.0}},
            [*repeated(*(n + 1.5 for n in range(9))), (10.0, Verdict.REPLACE)],
            id="silent for too long",
        ),
        pytest.param(
            {"until": 50, "beats": {float(at): float(at - 3) for at in range(4, 50)}},
            [(13.0, Verdict.REPLACE)],
            id="blocked for too long, as it says",
        ),
        pytest.param(
            {"until": 50, "beats": {float(at): float(at % 9) for at in range(50)}}, [], id="blocked in turn"
        ),
        pytest.param(
            {"until": 50, "beats": {0.0: 0.0, 1.0: 0.0, 2.0: 0.0, 3.0: 2.0}},
            [*repeated(*(n + 4.5 for n in range(7))), (11.0, Verdict.REPLACE)],
            id="blocked, then silent",
        ),
        pytest.param({"until": 50, "beats": {0.0: 0.0}, "stopped": (1.0, 60.0)}, [], id="stopped"),
        pytest.param(
            {"until": 50, "beats": {at: 0.0 for at in HEALTHY if not 1 < at < 41}, "stopped": (1.5, 40.0)},
            repeated(40.0),
            id="stopped for longer than it may be blocked",
        ),
        pytest.param(
            {
                "until": 50,
                "beats": {1.0: 2.0} | {at: 0.0 for at in HEALTHY if at > 40},
                "stopped": (1.5, 40.0),
            },
            repeated(40.0),
            id="stopped while it was blocked",
        ),
        pytest.param(
            {"until": 50, "beats": {at: 0.0 for at in HEALTHY if not 1 < at < 41}, "unwatched": (1.5, 40.0)},
            repeated(40.0),
            id="stopped together with its supervisor",
        ),
    ],
)
def test_verdicts(case: dict[str, object], expected: Verdicts) -> None:
    assert watched(**case) == expected  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans(), st.booleans()), max_size=50))
def test_only_one_that_runs_is_repeated_or_replaced(
    steps: list[tuple[float, bool, bool]],
) -> None:
    silence, now, heard_at, runs_since = Silence(LIMIT), 0.0, None, None
    for passed, is_running, is_heard in steps:
        now += passed
        if is_heard:
            silence.heard(now, interval=INTERVAL, blocked_seconds=0.0)
            heard_at = now
        verdict = silence.judge(now, is_running=is_running)
        runs_since = (now if runs_since is None else runs_since) if is_running else None
        if verdict is not Verdict.FINE:
            assert is_running
            assert heard_at is not None
            assert now - heard_at >= INTERVAL
        if verdict is Verdict.REPLACE:
            assert runs_since is not None
            assert now - runs_since >= LIMIT


@given(st.floats(0, 1e6), st.floats(0.01, 60))
def test_the_next_look_comes_when_it_is_silent(heard_at: float, interval: float) -> None:
    silence = Silence(LIMIT)
    assert silence.next_at() is None
    silence.heard(heard_at, interval=interval, blocked_seconds=0.0)
    silence.judge(heard_at, is_running=True)
    at = silence.next_at()
    assert at is not None
    assert silence.is_silent(at + 1e-6)
    assert at <= heard_at + 2 * interval


def test_one_that_is_stopped_is_not_looked_at_all_the_time() -> None:
    silence = Silence(LIMIT)
    silence.heard(0.0, interval=INTERVAL, blocked_seconds=0.0)
    silence.judge(0.0, is_running=True)
    silence.judge(5.0, is_running=False)
    assert silence.next_at() is None
    silence.judge(6.0, is_running=True)
    assert silence.next_at() == 6.0 + INTERVAL
