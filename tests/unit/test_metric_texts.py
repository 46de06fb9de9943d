"""Metrics of several processes become one text, in which each metric stands together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llama_deploy.measures import MAX_SERIES, OTHER, counter
from llama_deploy.metric_texts import merged


def a_text(value: float, name: str = "a") -> str:
    registry = CollectorRegistry()
    Counter("made", "Things made.\nAll of them, {braces} too.", ["kind"], registry=registry).labels(name).inc(
        value
    )
    Histogram("took_seconds", "Time.", registry=registry, buckets=(1.0,)).observe(value)
    Gauge("up", "Whether it is up.", registry=registry).set(1)
    return generate_latest(registry).decode()


def test_the_samples_of_two_processes_stand_below_one_head() -> None:
    text = merged([(a_text(1), {"process": "0"}), (a_text(2), {"process": "1"})])
    families = {family.name: family for family in text_string_to_metric_families(text)}
    made = {tuple(sorted(each.labels.items())): each.value for each in families["made"].samples}
    assert made[("kind", "a"), ("process", "0")] == 1
    assert made[("kind", "a"), ("process", "1")] == 2
    assert text.count("# TYPE made_total") == text.count("# TYPE up ") == 1
    assert len(families["took_seconds"].samples) == 2 * 4
    assert {each.labels["process"] for each in families["up"].samples} == {"0", "1"}


def test_a_text_alone_stays_as_it_is() -> None:
    text = a_text(3)
    assert list(text_string_to_metric_families(merged([(text, {})]))) == list(
        text_string_to_metric_families(text)
    )


def test_nothing_is_an_empty_text() -> None:
    assert merged([]) == merged([("", {"process": "0"})]) == ""


@given(value=st.text())
def test_any_label_value_survives(value: str) -> None:
    registry = CollectorRegistry()
    Gauge("g", "G.", ["of"], registry=registry).labels(value).set(2)
    text = merged([(generate_latest(registry).decode(), {"process": "0"})])
    (family,) = text_string_to_metric_families(text)
    assert family.samples[0].labels == {"process": "0", "of": value}


def test_the_number_of_series_is_bounded() -> None:
    registry = CollectorRegistry()
    counted = counter(registry, "c", "C.", ["service"])
    for number in range(MAX_SERIES + 5):
        counted.of(f"s{number}").inc()
        counted.of(f"s{number}").inc()
    (family,) = registry.collect()
    values = {each.labels["service"]: each.value for each in family.samples if each.name == "c_total"}
    assert len(values) == MAX_SERIES + 1
    assert values["s0"] == 2
    assert values[OTHER] == 2 * 5
