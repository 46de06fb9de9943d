"""Durations are counted as a histogram of Prometheus counts them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from llama_deploy.measures import SECONDS, Durations, histogram


@given(st.lists(st.sampled_from(SECONDS) | st.floats(0, 1e6), max_size=30))
def test_the_text_is_that_of_a_histogram_of_the_library(durations: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    series = histogram(ours, "took_seconds", "Time.", ["of"]).of("x")
    known = Histogram("took_seconds", "Time.", ["of"], registry=theirs, buckets=SECONDS).labels("x")
    for each in durations:
        series.observe(each)
        known.observe(each)
    text = generate_latest(theirs).decode().partition("# HELP took_seconds_created")[0]
    assert generate_latest(ours).decode() == text


def test_no_duration_of_any_thread_is_missing() -> None:
    durations = Durations()

    def observe(_: int) -> None:
        for _ in range(5_000):
            durations.observe(0.5)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(observe, range(8)))
    buckets, total = durations.read()
    assert buckets[-1] == ("+Inf", 40_000)
    assert total == pytest.approx(20_000)
    assert durations.read() == (buckets, total)
