"""What the parts measure with: metrics of Prometheus with a bounded number of label values."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, Generic, Protocol, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

S = TypeVar("S")

MAX_SERIES: Final = 200
"""How many label values, or combinations of them, a metric has. Further ones are counted as `OTHER`."""
OTHER: Final = "_other"

SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
"""The limits of the buckets of durations."""

_MOST_NOTED: Final = 1000
"""How many durations a series notes before it counts them."""


class Labelled(Generic[S]):
    """The series of a metric, by label values. What was asked for once costs a look into a dict.

    Args:
        series: Returns the series of label values, the same one each time.
        labels: How many labels there are.
    """

    def __init__(self, series: Callable[..., S], *, labels: int) -> None:
        self._series = series
        self._labels = labels
        self._known: dict[tuple[str, ...], S] = {} if labels else {(): series()}

    def of(self, *values: str) -> S:
        """Return the series of label values."""
        known = self._known.get(values)
        if known is None:
            if len(self._known) >= MAX_SERIES:
                return self._series(*[OTHER] * self._labels)
            known = self._known[values] = self._series(*values)
        return known


class Durations:
    """Durations in seconds, counted in buckets.

    They are noted first, and counted when somebody reads, or when there are many. A histogram of the library
    takes a lock twice for each, which was a hundredth of the CPU of a short task.
    """

    __slots__ = ("_counting", "_counts", "_noted", "_sum")

    def __init__(self) -> None:
        self._noted: deque[float] = deque()
        self._counting = threading.Lock()
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Note a duration; less than 0, by the clocks of two computers, counts as 0. Thread-safe."""
        self._noted.append(seconds)
        if len(self._noted) >= _MOST_NOTED:
            self._count()

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Return the limits of the buckets with the number of durations up to each, and the sum."""
        with self._counting:
            self._count_noted()
            limits = [*map(floatToGoString, SECONDS), "+Inf"]
            return list(zip(limits, accumulate(self._counts), strict=True)), self._sum

    def _count(self) -> None:
        with self._counting:
            self._count_noted()

    def _count_noted(self) -> None:
        for _ in range(len(self._noted)):
            seconds = max(0.0, self._noted.popleft())
            self._counts[bisect_left(SECONDS, seconds)] += 1
            self._sum += seconds


class _Histogram(Collector):
    """Collects the series of a histogram for a registry."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._series: dict[tuple[str, ...], Durations] = {}

    def series(self, *values: str) -> Durations:
        """Return the series of label values."""
        return self._series.setdefault(values, Durations())

    def collect(self) -> Iterator[Metric]:
        """Return the present values."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, durations in self._series.copy().items():
            family.add_metric(values, *durations.read())
        yield family


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
    metric = Counter(name, text, labels, registry=registry)
    return Labelled(metric.labels if labels else lambda: metric, labels=len(labels))


def histogram(
    registry: CollectorRegistry, name: str, text: str, labels: Sequence[str]
) -> Labelled[Durations]:
    """Return a histogram of durations in seconds."""
    metric = _Histogram(name, text, labels)
    registry.register(metric)
    return Labelled(metric.series, labels=len(labels))


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
