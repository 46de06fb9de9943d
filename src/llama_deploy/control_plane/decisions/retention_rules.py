"""Which ended tasks are removed, and when their events are. No I/O, no clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple

import pydantic_core

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.state_stores.retention_rows import EndedFilter, EndedTask, Place, RowsOfTask
from llama_deploy.types import TaskStatus
from llama_deploy.types.epoch import from_microseconds, to_microseconds
from llama_deploy.types.retention import RetentionRule

COUNTED_AFTER: Final = timedelta(hours=24)
"""A task is not removed because there are too many before this time has passed since its end."""
_TERMINAL: Final = tuple(status for status in TaskStatus if status.is_terminal)


class Removal(StrEnum):
    """What is removed."""

    TASKS = "tasks"
    EVENTS = "events"
    """All events of a task but the terminal one."""


class Pass(NamedTuple):
    """A walk over the ended tasks of one status, from the oldest on, for one rule."""

    removal: Removal
    rule: int
    """The index of the rule."""
    status: TaskStatus

    @property
    def name(self) -> str:
        """The name of its cursor."""
        return f"{self.removal.value}/{self.rule}/{self.status.value}"


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """What the settings say about ended tasks."""

    rules: Sequence[RetentionRule]
    """The first one that matches a task counts. The last one matches every task, and all have their times."""

    @classmethod
    def of(cls, config: ControlPlaneConfig) -> RetentionPolicy:
        """Return the policy of the settings."""
        default = RetentionRule(
            task_days=config.retention_task_days,
            event_days=config.retention_event_days,
            max_tasks=config.retention_max_tasks,
            journals=config.retention_journals,
        )
        rules = [
            rule.model_copy(
                update={
                    name: getattr(default, name)
                    for name in ("task_days", "event_days", "journals")
                    if getattr(rule, name) is None
                }
            )
            for rule in config.retention_rules
        ]
        return cls([*rules, default])

    @property
    def name(self) -> str:
        """A name that another policy does not have."""
        text = json.dumps([rule.model_dump(mode="json") for rule in self.rules], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def passes(self) -> Iterator[Pass]:
        """Yield the walks over the ended tasks that the policy needs; tasks are removed before events."""
        for removal in Removal:
            for index, rule in enumerate(self.rules):
                days = rule.task_days if removal is Removal.TASKS else rule.event_days
                if days == "off" and (removal is Removal.EVENTS or rule.max_tasks is None):
                    continue
                for status in rule.status or _TERMINAL:
                    yield Pass(removal, index, status)

    def rule_of(self, task: EndedTask) -> int:
        """Return the index of the rule that counts for a task."""
        return next(index for index, rule in enumerate(self.rules) if _matches(rule, task))

    def keeps_journal(self, *, service_name: str, session_id: str) -> bool:
        """Whether the journal of a task is kept that succeeds."""
        status = TaskStatus.SUCCEEDED
        matching = (rule for rule in self.rules if _applies(rule, status, service_name, session_id))
        return bool(next(matching).journals)

    def cutoff(self, each: Pass, *, now: datetime, counted: datetime | None) -> datetime | None:
        """Return before which end the tasks of a pass are due. None: none of them is.

        Args:
            each: The pass.
            now: The present time.
            counted: When the oldest of the newest `max_tasks` tasks ended. None: there are not more of them.
        """
        rule = self.rules[each.rule]
        days = rule.task_days if each.removal is Removal.TASKS else rule.event_days
        cutoffs = []
        if isinstance(days, int | float):
            cutoffs.append(now - timedelta(days=days))
        if each.removal is Removal.TASKS and counted is not None:
            cutoffs.append(min(counted, now - COUNTED_AFTER))
        return max(cutoffs, default=None)

    def counts(self, each: Pass) -> tuple[EndedFilter, int] | None:
        """Return which tasks are counted for a pass, and how many of them are kept. None: any number."""
        rule = self.rules[each.rule]
        if each.removal is Removal.EVENTS or rule.max_tasks is None:
            return None
        return EndedFilter(rule.status, rule.service, rule.session), rule.max_tasks


def _matches(rule: RetentionRule, task: EndedTask) -> bool:
    return _applies(rule, task.status, task.service_name, task.session_id)


def _applies(rule: RetentionRule, status: TaskStatus, service_name: str, session_id: str) -> bool:
    return (
        (not rule.status or status in rule.status)
        and rule.service in (None, service_name)
        and rule.session in (None, session_id)
    )


def encode_cursors(cursors: Mapping[str, Place]) -> str:
    """Return cursors as JSON."""
    return json.dumps(
        {name: [to_microseconds(place.ended_at), place.position] for name, place in cursors.items()}
    )


def decode_cursors(text: str) -> dict[str, Place]:
    """Return the cursors in a JSON object of `encode_cursors`."""
    stored: dict[str, Any] = json.loads(text)
    return {
        name: Place(from_microseconds(microseconds), position)
        for name, (microseconds, position) in stored.items()
    }


def digest_of(service_name: str, arguments: str) -> str:
    """Return a digest of what a task was submitted with: equal JSON has the same one.

    Args:
        service_name: The service.
        arguments: The run arguments, as JSON.
    """
    try:
        text = json.dumps(pydantic_core.from_json(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        text = arguments
    return hashlib.sha256(f"{service_name}\0{text}".encode(errors="surrogatepass")).hexdigest()


class Share(NamedTuple):
    """How many of some tasks one transaction takes."""

    size: int
    """The first so many tasks."""
    last_in_slices: bool
    """Whether the last one of them is so large that what it has must be deleted in slices."""


def share(sizes: Sequence[RowsOfTask], *, max_rows: int, max_bytes: int) -> Share:
    """Return how many tasks fit into one transaction: at least one, if there is one.

    Args:
        sizes: How much is stored of each task.
        max_rows: The most rows of them.
        max_bytes: The most bytes.
    """
    rows = size = 0
    for index, each in enumerate(sizes):
        rows += each.rows
        size += each.bytes
        if rows > max_rows or size > max_bytes:
            alone = index == 0
            return Share(1 if alone else index, last_in_slices=alone)
    return Share(len(sizes), last_in_slices=False)


def settings_of(config: ControlPlaneConfig) -> dict[str, Any]:
    """Return the settings of retention as JSON."""
    return {
        name: value for name, value in config.model_dump(mode="json").items() if name.startswith("retention_")
    }
