"""What the streams of tasks must not say after faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

from llama_deploy import NewAttempt
from llama_deploy.types import TaskEvent
from tests.faults.ledger import STEPS, Faults

Item: TypeAlias = TaskEvent | NewAttempt
"""What a reader gets who asks for attempts too."""


def stream_violations(flow: str, live: Sequence[Item], later: Sequence[Item], faults: Faults) -> list[str]:
    """Return what is wrong with a task's stream.

    Args:
        flow: Its workflow, one of `programs/flows.py`.
        live: What a reader has got who was there from the start.
        later: What one has got who came when the task had ended.
        faults: What was done to the processes.
    """
    wrong = []
    if later != live:
        wrong.append(f"two readers have seen different streams: {live} and {later}")
    events = events_of(later)
    if [event.index for event in events] != list(range(len(events))):
        wrong.append(f"the stream has gaps: {[event.index for event in events]}")
    if [event.terminal for event in events] != [False] * (len(events) - 1) + [True]:
        wrong.append("the terminal event is not the last one, or not the only one")
    # A run that waits may come back where it was: for a person, and, if it was handed back, for a retry.
    if flow not in {"human", "volatile"} and not (flow == "flaky" and faults.drained):
        writers = [event.data["pid"] for event in events if event.type == "Progress"]
        wrong += comebacks(writers, faults)
    wrong += _wrong_markers(later, faults)
    wrong += _wrong_page(flow, later)
    return wrong


def events_of(items: Sequence[Item]) -> list[TaskEvent]:
    """Return what is numbered in a stream."""
    return [item for item in items if isinstance(item, TaskEvent)]


def page_of(items: Sequence[Item]) -> list[TaskEvent]:
    """Return what a page shows in the end that discards what it is told to."""
    shown: list[TaskEvent] = []
    for item in items:
        if isinstance(item, NewAttempt):
            shown = [event for event in shown if not item.repeats(event)]
        else:
            shown.append(item)
    return shown


def _wrong_markers(items: Sequence[Item], faults: Faults) -> Iterator[str]:
    """A marker stands before all that its attempt writes, and there is a reason for it."""
    reasons = {"lost"} if faults.deaths or faults.outages else set()
    reasons |= {"handed_back"} if faults.drained else set()
    reasons |= {"reports_lost"} if faults.outages else set()
    attempt, index = 1, 0
    for item in items:
        number = item.attempt or 1
        if isinstance(item, NewAttempt):
            if number <= attempt or item.position != index or not 0 <= item.repeats_from <= index:
                yield f"after attempt {attempt}, before event {index}, there is {item!r}"
            if item.reason not in reasons:
                yield f"nothing was done that explains {item!r}"
        else:
            index = item.index + 1
            if number < attempt:
                yield f"attempt {number} has written event {item.index} after attempt {attempt} had begun"
        attempt = max(attempt, number)


def _wrong_page(flow: str, items: Sequence[Item]) -> Iterator[str]:
    """A page that discards what it is told to shows each step once, whatever ran twice."""
    shown = Counter(event.data["step"] for event in page_of(items) if event.type == "Progress")
    expected = Counter(name for group in STEPS[flow] for name in group)
    if flow == "collect":
        del expected["split"]  # it streams nothing
    if shown != expected:
        differs = {
            name: shown[name] for name in shown.keys() | expected.keys() if shown[name] != expected[name]
        }
        yield f"a page shows these steps so many times: {differs}; the stream: {list(items)}"


def comebacks(writers: Sequence[int], faults: Faults) -> list[str]:
    """Return what is wrong with the order in which processes wrote into a stream.

    One comes back only if the one that took its place has died.
    """
    turns = [pid for n, pid in enumerate(writers) if n == 0 or writers[n - 1] != pid]
    died = {death.pid for death in faults.deaths}
    return [
        f"process {after} wrote into the stream after {before} had taken its place"
        for n, (before, after) in enumerate(pairwise(turns))
        if after in turns[: n + 1] and before not in died
    ]
