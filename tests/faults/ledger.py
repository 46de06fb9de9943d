"""What the steps of the workflows in `programs/flows.py` have written down, and what it must not say."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from tests.faults.programs.flows import ITEMS, RETRIES, WORKERS

CHAIN: Final = ("one", "two", "three", "four", "five")
EXPECTED: Final = {
    "chain": ">".join(CHAIN),
    "fan": str(sum(n**2 for n in range(ITEMS))),
    "collect": str(sum(n**2 for n in range(ITEMS))),
    "human": "yes",
    "flaky": f"{RETRIES} retries",
    "volatile": "yes",
}
"""The result of each workflow, behind the name of its run."""
_ITEMS: Final = tuple(f"item-{n}" for n in range(ITEMS))
STEPS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "chain": tuple((name,) for name in CHAIN),
    "fan": (("split",), _ITEMS, ("join",)),
    "collect": (("split", *_ITEMS), ("join",)),
    "human": (("prepare",), ("ask",), ("finish",)),
    "flaky": (*((f"try-{n}",) for n in range(RETRIES + 1)), ("finish",)),
    "volatile": (("prepare",), ("ask",), ("finish",)),
}
"""The steps of each workflow, in groups of which each depends on all of the one before."""
AT_ONCE: Final = {"chain": 1, "fan": WORKERS, "collect": WORKERS + 1, "human": 1, "flaky": 1, "volatile": 3}
"""How many steps of each run are under way at most: the items of a fan-out, and what goes on sending them."""
STARTS_AGAIN: Final = frozenset({"volatile"})
"""The workflows of which nothing is stored: all steps run again when a process dies."""
DURABLE_SECONDS: Final = 1.0
"""What a step has done that no other one depends on is stored so long after its end, and some answers."""
ANSWERS: Final = 3
"""How many: its own process, the control plane and the store may each be as slow as one."""
STALE_SECONDS: Final = 3.0
"""How long a process that was paused may take to learn that its attempts belong to others."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the ledger."""

    at: float
    word: str
    task: str
    step: str
    pid: int


@dataclass(frozen=True, slots=True)
class Death:
    """A process was killed at `begin`; or it was paused then, and woken at `end`."""

    pid: int
    begin: float
    """When it was dead, or paused, for certain."""
    end: float | None = None
    """When it was woken. None: it was killed."""
    since: float | None = None
    """From when on it may have been dead, or may have handed back its tasks. None: from `begin` on."""

    @property
    def earliest(self) -> float:
        """When it was killed or paused, or asked to end."""
        return self.begin if self.since is None else self.since

    def is_within(self, begin: float, end: float) -> bool:
        """Whether it may have happened within a time."""
        return begin <= self.begin and self.earliest <= end


@dataclass(slots=True)
class Faults:
    """What was done to the processes."""

    deaths: list[Death] = field(default_factory=list)
    """Those of processes that run steps."""
    drained: list[Death] = field(default_factory=list)
    """Those that were asked to end. They hand back what waits; of the rest, all ends in time if they are not
    among `deaths`."""
    outages: list[tuple[float, float]] = field(default_factory=list)
    """From when to when queue or control plane were away, with the time that it takes to connect again."""
    answers: list[tuple[float, float]] = field(default_factory=list)
    """When the control plane was asked for something small, and when it answered."""

    def hit(self, pid: int, begin: float, end: float) -> Death | None:
        """Return the death of a process within a time."""
        return next((d for d in self.deaths if d.pid == pid and d.is_within(begin, end)), None)

    def woken(self, pid: int, at: float) -> Death | None:
        """Return the pause from which a process woke up shortly before a time.

        Until it learns that it has lost its attempts, it goes on with them, and it may have claimed the next
        attempt of the same task already.
        """
        pauses = [death for death in self.deaths if death.pid == pid and death.end is not None]
        return next((d for d in pauses if d.end is not None and 0 <= at - d.end <= STALE_SECONDS), None)

    def slowness(self, begin: float, end: float) -> float:
        """Return how long an answer took at most within a time, in seconds; on a crowded machine a while."""
        within = [until - since for since, until in self.answers if since < end and begin < until]
        return max(within, default=0.0)

    def all_was_well(self, begin: float, end: float) -> bool:
        """Return whether queue and control plane could store things all the time."""
        return not any(since < end and begin < until for since, until in self.outages)


class Ledger:
    """The ledger, as far as it was written when it was read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def clear(self) -> None:
        """Forget all that was written."""
        os.truncate(self.path, 0)

    def lines(self) -> list[Line]:
        """Return all lines, in order."""
        lines = []
        for text in self.path.read_text().splitlines():
            at, word, task, name, pid = text.split()
            lines.append(Line(float(at), word, task, name, int(pid)))
        return lines

    def begun(self, word: str = "begin", *, step: str | None = None) -> list[Line]:
        """Return the lines of steps that have begun, of one name if it is given."""
        return [line for line in self.lines() if line.word == word and step in (None, line.step)]

    def violations(
        self, flow: str, task: str, faults: Faults, *, streamed: Collection[tuple[str, int]] = ()
    ) -> list[str]:
        """Return what a task that has ended has done and should not have.

        Args:
            flow: Its workflow.
            task: Its name.
            faults: What was done to the processes.
            streamed: The steps whose events are in its stream, each with the process that sent them. Needed
                if a process was paused.
        """
        lines = [line for line in self.lines() if line.task == task]
        if flow in STARTS_AGAIN:  # also if it only waited
            faults = replace(faults, deaths=[*faults.deaths, *faults.drained])
        return [f"task {task} ({flow}): {found}" for found in _violations(flow, lines, faults, streamed)]


def _violations(
    flow: str, lines: Sequence[Line], faults: Faults, streamed: Collection[tuple[str, int]]
) -> Iterator[str]:
    stale = _stale(lines, faults)
    # A process that has lost the task streams nothing. One that streams has an attempt of its own again.
    yield from _too_many_stale(
        flow, {line for line in stale if (line.step, line.pid) not in streamed}, faults
    )
    begins: dict[str, list[Line]] = defaultdict(list)
    ends: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line not in stale:
            (begins if line.word == "begin" else ends)[line.step].append(line)
    for group in STEPS[flow]:
        for name in group:
            if not ends[name] and not any(line.step == name for line in stale):
                yield f"step {name} has not ended"
    for before, after in () if flow in STARTS_AGAIN else pairwise(STEPS[flow]):
        gone_on = min((line.at for name in after for line in begins[name]), default=None)
        for name in before:
            if gone_on is not None and any(line.at > gone_on for line in begins[name]):
                yield f"step {name} has begun after a step that depends on it"
    for name, found in begins.items():
        yield from _unfounded_repeats(name, found, () if flow in STARTS_AGAIN else ends[name], faults)
    yield from _too_many_repeats(flow, begins, faults)


def _stale(lines: Sequence[Line], faults: Faults) -> set[Line]:
    """Return what a process wrote that was paused, for a task that others had taken over meanwhile.

    A pause can hit it when it has been told to go on, and has not done so yet. What it does outside then
    nobody can hold back.
    """
    stale = set()
    for death in faults.deaths:
        if death.end is None:
            continue
        others = [line for line in lines if line.pid != death.pid and death.begin < line.at]
        taken = min((line.at for line in others), default=math.inf)
        for line in lines:
            since_woken = line.at - death.end
            # Later lines come from an attempt of its own, which it may have got again.
            if line.pid == death.pid and 0 <= since_woken <= STALE_SECONDS and line.at > taken:
                stale.add(line)
    return stale


def _too_many_stale(flow: str, stale: set[Line], faults: Faults) -> Iterator[str]:
    begun = sum(line.word == "begin" for line in stale)
    pauses = sum(death.end is not None for death in faults.deaths)
    if begun > pauses * AT_ONCE[flow]:
        yield f"{begun} steps have begun in processes that had lost the task"


def _unfounded_repeats(
    name: str, begins: Sequence[Line], ends: Sequence[Line], faults: Faults
) -> Iterator[str]:
    """A step runs again only if its process died under it, or before its end was stored."""
    for one, other in pairwise(begins):
        death = faults.hit(one.pid, one.at, other.at) or faults.woken(one.pid, one.at)
        if death is None:
            yield f"step {name} has begun again, and process {one.pid} had not died"
            continue
        for end in ends:
            finished = end.pid == one.pid and end.at < death.earliest
            stored_by = end.at + DURABLE_SECONDS + ANSWERS * faults.slowness(end.at, death.earliest)
            if finished and death.earliest > stored_by and faults.all_was_well(end.at, stored_by):
                between = death.earliest - end.at
                yield f"step {name} has begun again, {between:.1f} s lay between end and death"


def _too_many_repeats(flow: str, begins: dict[str, list[Line]], faults: Faults) -> Iterator[str]:
    """A fan-out works on so many items at a time, and stores what is done before it takes the next."""
    for death in faults.deaths:
        repeated = [
            name
            for name, found in begins.items()
            if any(
                one.pid == death.pid and death.is_within(one.at, other.at) for one, other in pairwise(found)
            )
        ]
        if len(repeated) > AT_ONCE[flow]:
            yield f"{len(repeated)} steps have begun again after process {death.pid} died: {repeated}"


def takeover(lines: Sequence[Line], death: Death) -> list[float]:
    """Return how long one task took to go on elsewhere, nothing if it was not under way in the process.

    Args:
        lines: What the task has written.
        death: Of a process.
    """
    before = [line for line in lines if line.pid == death.pid and line.at <= death.begin]
    if (
        not before
        or before[-1].word != "begin"
        or any(line.at < death.earliest for line in _elsewhere(lines, death))
    ):
        return []
    after = [line.at for line in _elsewhere(lines, death) if line.at > death.earliest]
    return [min(after) - death.earliest] if after else []


def _elsewhere(lines: Sequence[Line], death: Death) -> list[Line]:
    return [line for line in lines if line.pid != death.pid]
