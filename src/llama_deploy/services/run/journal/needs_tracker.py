"""What the journal of a run needs of the version that resumes it, kept up to date while it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from workflows import Workflow

from llama_deploy.codec import qualified_name
from llama_deploy.types.workflow_shape import RunNeeds, StepNeed, WorkflowShape
from llama_deploy.workflow_library import WorkflowTick, steps_in_ticks, steps_with_answers

Classes = dict[str, bool]
"""Names of classes, and whether an object of each is stored, see `TypedJson.noting`."""


@dataclass(slots=True, eq=False)
class NeedsTracker:
    """The needs of one run."""

    workflow: Workflow
    shape: WorkflowShape
    """Describes the workflow."""
    stored: RunNeeds | None = None
    """What is stored as the run's needs. None: nothing."""
    _steps: dict[str, set[str]] = field(default_factory=dict, init=False)
    """The steps that the run needs, each with the events that it must take."""
    _classes: Classes = field(default_factory=dict, init=False)
    """The classes in snapshot and entries."""
    _state: Classes | None = field(default=None, init=False)
    """The classes in the stored state. None: no state is stored."""
    _has_entries: bool = field(default=False, init=False)
    _has_changed: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        """Begin with what earlier attempts have stored."""
        if self.stored is None:
            return
        self._steps = {name: set(need.takes) for name, need in self.stored.steps.items()}
        self._classes = {name: fields is not None for name, fields in self.stored.classes.items()}
        if self.stored.state is not None:
            self._state = {name: fields is not None for name, fields in self.stored.state_classes.items()}
        self._has_entries = self.stored.library_version is not None
        self._has_changed = False

    def add_entries(
        self, ticks: Iterable[WorkflowTick], classes: Mapping[str, bool], *, has_asked: bool
    ) -> None:
        """Entries are to be written, with objects of these classes."""
        steps = {name: set[str]() for name in steps_in_ticks(self.workflow, ticks)}
        if has_asked:
            steps = steps_with_answers(self.workflow) | steps
        if not self._has_entries or steps.keys() - self._steps.keys() or _has_news(classes, self._classes):
            self._steps = steps | self._steps
            self._classes = _united(self._classes, classes)
            self._has_entries = self._has_changed = True

    def set_state(self, classes: Classes) -> None:
        """The state is to be written, with objects of these classes."""
        if classes != self._state:
            self._state, self._has_changed = dict(classes), True

    def take_changed(self) -> RunNeeds | None:
        """Return the needs, which count as stored from now on. None: they have not changed."""
        if not self._has_changed:
            return None
        self._has_changed = False
        needs = self._needs(self._steps, self._classes, has_entries=self._has_entries)
        if needs == self.stored:
            return None
        self.stored = needs
        return needs

    def folded(
        self,
        steps: Mapping[str, AbstractSet[str]],
        classes: Mapping[str, bool],
        *,
        awaited: Sequence[type],
        takes_answers: bool,
    ) -> Folded:
        """Return what the run needs once it is stored as a snapshot; `fold` when that is done.

        Args:
            steps: See `MadeSnapshot.steps`.
            classes: The classes of the objects in the snapshot.
            awaited: See `MadeSnapshot.awaited`.
            takes_answers: Whether the steps that take events from outside are needed.
        """
        needed = {name: set(events) for name, events in steps.items()}
        if takes_answers:
            for name, events in steps_with_answers(self.workflow).items():
                needed.setdefault(name, set()).update(events)
        named = dict.fromkeys(filter(self.shape.class_named, map(qualified_name, awaited)), False)
        return Folded(needed, named | dict(classes))

    def needs_of(self, folded: Folded) -> RunNeeds | None:
        """Return the needs of a run that is stored as a snapshot. None: they have not changed."""
        needs = self._needs(folded.steps, folded.classes, has_entries=False)
        return None if needs == self.stored else needs

    def fold(self, folded: Folded) -> None:
        """The snapshot is stored."""
        self._steps, self._classes = folded.steps, folded.classes
        self._has_entries = self._has_changed = False
        self.stored = self._needs(folded.steps, folded.classes, has_entries=False)

    def _needs(
        self, steps: Mapping[str, AbstractSet[str]], classes: Classes, *, has_entries: bool
    ) -> RunNeeds:
        return RunNeeds(
            steps={name: self._step_need(name, steps[name], exact=has_entries) for name in sorted(steps)},
            classes=self._fields(classes),
            state=None if self._state is None else self.shape.state,
            state_classes=self._fields(self._state or {}),
            library_version=self.shape.library_version if has_entries else None,
        )

    def _step_need(self, name: str, events: AbstractSet[str], *, exact: bool) -> StepNeed:
        step = self.shape.steps.get(name)
        if not exact or step is None:
            return StepNeed(takes=sorted(events))
        return StepNeed(takes=step.takes, workers=step.workers)

    def _fields(self, classes: Classes) -> dict[str, dict[str, str] | None]:
        shapes = {name: self.shape.class_named(name) for name in sorted(classes)}
        return {
            name: None if shape is None or not classes[name] else shape.fields
            for name, shape in shapes.items()
        }


@dataclass(frozen=True, slots=True)
class Folded:
    """What a run needs that is stored as a snapshot."""

    steps: dict[str, set[str]]
    classes: Classes


def _has_news(classes: Mapping[str, bool], known: Mapping[str, bool]) -> bool:
    return any(is_held > known.get(name, -1) for name, is_held in classes.items())


def _united(first: Mapping[str, bool], second: Mapping[str, bool]) -> Classes:
    return {**first, **{name: is_held or first.get(name, False) for name, is_held in second.items()}}
