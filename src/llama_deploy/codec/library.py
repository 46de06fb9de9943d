"""The workflow library's own classes that appear in what is stored: its events, its ticks, its state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import workflows.events
from pydantic import BaseModel
from workflows.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    InternalDispatchEvent,
    StartEvent,
    StopEvent,
    UnreconstructedException,
)

from llama_deploy.codec.annotations import classes_in
from llama_deploy.workflow_library import DictLikeModel, DictState, WorkflowTick

GENERIC_EVENTS: Final[frozenset[type]] = frozenset(
    {
        DictLikeModel,
        Event,
        StartEvent,
        StopEvent,
        InputRequiredEvent,
        HumanResponseEvent,
        InternalDispatchEvent,
        DictState,
    }
)
"""Classes that anybody's are derived from: a field of one of them says nothing of what it may hold."""


def library_types() -> Iterator[type[BaseModel | BaseException]]:
    """Return the classes that may appear in any workflow's ticks, snapshots and streams."""
    for value in vars(workflows.events).values():
        if isinstance(value, type) and issubclass(value, Event):
            yield value
    yield DictState
    yield UnreconstructedException
    for cls in classes_in(WorkflowTick):
        if issubclass(cls, BaseModel):
            yield cls
