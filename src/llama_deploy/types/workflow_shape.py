"""What a version of a workflow offers to runs that another version has begun, and what such a run needs.

Both are compared by `control_plane.decisions.fit`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, Field

from llama_deploy.types.exact_values import Count, Flag

MAX_SHAPE_CHARACTERS: Final = 64 * 1024
"""The most characters of a `WorkflowShape` as JSON."""
_WHOLE: Final = "*"


def digest_of(text: str) -> str:
    """Return a short digest of a text."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def bare_name(name: str) -> str:
    """Return the name of a class without its module and the classes in which it is nested."""
    head, bracket, rest = name.partition("[")
    return head.rpartition(".")[2] + bracket + rest


def is_whole(fields: Mapping[str, str]) -> bool:
    """Whether these are fields that `as_whole` has replaced."""
    return _WHOLE in fields


def as_whole(fields: Mapping[str, str]) -> dict[str, str]:
    """Return one field that stands for all fields of a class whose shape is too large: a digest of them."""
    return dict(fields) if is_whole(fields) else {_WHOLE: digest_of(json.dumps(fields, sort_keys=True))}


class StepShape(BaseModel):
    """A step."""

    takes: list[str]
    """The names of the event classes that it accepts, sorted."""
    returns: list[str] = Field(default_factory=list)
    """The names of what it declares to return, sorted."""
    workers: Count = 4
    """How many of its executions a run may have at the same time."""
    takes_subclasses: Flag = False
    """Whether it accepts classes derived from these too."""


class ClassShape(BaseModel):
    """A class whose objects runs store: an event, a state, or data in one of them."""

    fields: dict[str, str]
    """The types of its fields by name, in a canonical form: the parts of a union are sorted."""
    required: list[str] = Field(default_factory=list)
    """The fields without a default."""


class WorkflowShape(BaseModel):
    """What a version of a workflow offers."""

    fingerprint: str
    """See `RunHeader`."""
    library_version: str
    """The version of the workflow library."""
    steps: dict[str, StepShape]
    classes: dict[str, ClassShape]
    """The classes that can be read, by qualified name."""
    state: str
    """The qualified name of the class of `ctx.store`."""

    def class_named(self, name: str) -> ClassShape | None:
        """Return a class by its name. None: it cannot be read.

        If its module has moved, its own name is enough if only one class has it; this is how stored objects
        are read.
        """
        if name in self.classes:
            return self.classes[name]
        same = [shape for each, shape in self.classes.items() if bare_name(each) == bare_name(name)]
        return same[0] if len(same) == 1 else None

    @property
    def version(self) -> str:
        """A digest: it identifies the version."""
        return digest_of(json.dumps(self.model_dump(mode="json"), sort_keys=True))


class StepNeed(BaseModel):
    """Why a run needs a step."""

    takes: list[str] = Field(default_factory=list)
    """The names of the event classes that it must accept; of a run with entries, all that it accepts."""
    workers: Count | None = None
    """`StepShape.workers`, which decides how entries are replayed. None: any number will do."""


class RunNeeds(BaseModel):
    """What a run's journal needs of the version that resumes it. The default needs nothing."""

    steps: dict[str, StepNeed] = Field(default_factory=dict)
    """The steps that have work, wait, have collected something, or take the answer to a question; of a run
    with entries, also those that have worked since its snapshot."""
    classes: dict[str, dict[str, str] | None] = Field(default_factory=dict)
    """The classes of objects in snapshot and entries with their fields, see `ClassShape`.

    None: only the class is named.
    """
    state: str | None = None
    """The qualified name of the class of the stored state. None: no state is stored."""
    state_classes: dict[str, dict[str, str] | None] = Field(default_factory=dict)
    """The classes of objects in the state, as `classes`."""
    library_version: str | None = None
    """The version of the workflow library that reads the entries. None: there are only snapshots, which every
    version reads."""
