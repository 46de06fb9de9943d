"""The workflow library's own classes in stored data: its events, ticks and state."""

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
"""Base classes of user classes: a field of such a type does not tell which class its value has."""


def library_types() -> Iterator[type[BaseModel | BaseException]]:
    """Return the classes that may appear in the ticks, snapshots and streams of any workflow."""
    for value in vars(workflows.events).values():
        if isinstance(value, type) and issubclass(value, Event):
            yield value
    yield DictState
    yield UnreconstructedException
    for cls in classes_in(WorkflowTick):
        if issubclass(cls, BaseModel):
            yield cls
