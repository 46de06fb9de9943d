"""Pauses between tries: they grow, have a bound, and no count of failures breaks them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.message_queues.consumer_loop import nack_delay


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(first=0.1, longest=1.0)
    assert [backoff.delay(failures) for failures in range(1, 7)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_count_below_one_is_the_first_pause() -> None:
    assert Backoff(first=0.1, longest=1.0).delay(0) == Backoff(first=0.1, longest=1.0).delay(-7) == 0.1


@pytest.mark.parametrize("factor", [1.0, 1.5, 2, 10.0])
@pytest.mark.parametrize("failures", [1024, 1025, 10**9, 10**400])
def test_no_count_is_too_large(factor: float, failures: int) -> None:
    assert Backoff(first=0.1, factor=factor, longest=5.0).delay(failures) == (0.1 if factor == 1 else 5.0)


@given(st.integers(min_value=1), st.floats(min_value=1, max_value=100))
def test_pauses_never_shrink(failures: int, factor: float) -> None:
    backoff = Backoff(first=0.05, factor=factor, longest=60.0)
    assert 0.05 <= backoff.delay(failures) <= backoff.delay(failures + 1) <= 60.0


def test_a_message_that_fails_for_ever_is_tried_every_30_seconds() -> None:
    assert nack_delay(1) == 0.1
    assert nack_delay(2) == 0.2
    assert nack_delay(5000) == 30.0
