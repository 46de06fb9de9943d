"""What the parts measure with: metrics of Prometheus with a bounded number of label values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

M = TypeVar("M", Counter, Histogram)

MAX_SERIES: Final = 200
"""How many label values, or combinations of them, a metric has. Further ones are counted as `OTHER`."""
OTHER: Final = "_other"

SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
"""The limits of the buckets of durations."""


class Labelled(Generic[M]):
    """A metric by label values. What was asked for once costs a look into a dict."""

    def __init__(self, metric: M, *, labels: int) -> None:
        self._metric: M = metric
        self._labels = labels
        self._known: dict[tuple[str, ...], M] = {} if labels else {(): metric}

    def of(self, *values: str) -> M:
        """Return the series of label values."""
        known = self._known.get(values)
        if known is None:
            if len(self._known) >= MAX_SERIES:
                return self._metric.labels(*[OTHER] * self._labels)
            known = self._known[values] = self._metric.labels(*values)
        return known


class Timing:
    """Measures how long a `with` takes, in seconds."""

    __slots__ = ("_began", "_tell")

    def __init__(self, tell: Callable[[float], object]) -> None:
        self._tell = tell
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exc_info: object) -> None:
        self._tell(time.perf_counter() - self._began)


def counter(registry: CollectorRegistry, name: str, text: str, labels: Sequence[str]) -> Labelled[Counter]:
    """Return a counter; its samples end in `_total`."""
    return Labelled(Counter(name, text, labels, registry=registry), labels=len(labels))


def histogram(
    registry: CollectorRegistry, name: str, text: str, labels: Sequence[str]
) -> Labelled[Histogram]:
    """Return a histogram of durations in seconds."""
    return Labelled(Histogram(name, text, labels, registry=registry, buckets=SECONDS), labels=len(labels))


def gauge(
    name: str, text: str, values: Iterable[tuple[Sequence[str], float]], labels: Sequence[str]
) -> Metric:
    """Return values that were just read, each with its label values."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return family


class _Collects(Protocol):
    def collect(self) -> Iterable[Metric]: ...


class _Families:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def text_of(registry: CollectorRegistry, gauges: Iterable[Metric] = ()) -> str:
    """Return the metrics of a registry, and values that were just read, in the text format."""
    return _text(registry) + _text(_Families(gauges))


def process_text() -> str:
    """Return the default registry: what is known of this process, and the metrics of the user's own code."""
    return _text(REGISTRY)


def _text(collects: _Collects) -> str:
    return generate_latest(collects).decode()
