"""Finds the questions that an event answers, without a look at all the others that are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from workflows.events import Event

from llama_deploy.workflow_library import event_matches


@dataclass(slots=True, eq=False)
class Branch:
    """One run of a step that has asked. The identity of its event tells parallel runs of one step apart."""

    step: str
    begun: Event
    """The event with which the step began."""
    questions: dict[Question, None] = field(default_factory=dict)
    open: int = 0
    """How many of its questions are not answered."""
    working: int = 0
    """How many times the library runs the step now, with an answer."""

    def change(self, *, open: int = 0, working: int = 0) -> bool:  # noqa: A002 - the name of the field
        """Change the counters, and what is known of the kinds of its questions.

        Returns:
            Whether the run may want an event now that it did not want.
        """
        was_open, was_working = self.open > 0, self.working > 0
        self.open += open
        self.working += working
        asking, busy = (self.open > 0) - was_open, (self.working > 0) - was_working
        is_free = False
        if asking or busy:
            for kind in [question.kind for question in self.questions]:
                kind.asking += asking
                kind.working += busy
                is_free = is_free or (not kind.working and (busy < 0 or (asking < 0 and not kind.asking)))
        return is_free


@dataclass(slots=True, eq=False)
class Kind:
    """Questions that the same events answer, counted."""

    shape: _Shape
    values: tuple[Any, ...]
    """What the compared fields must be."""
    questions: dict[Question, None] = field(default_factory=dict)
    steps: Counter[str] = field(default_factory=Counter)
    """How many questions each step has asked."""
    open: int = 0
    """How many are not answered."""
    asking: int = 0
    """How many belong to branches that wait for an answer to one of their questions."""
    working: int = 0
    """How many belong to branches that work on an answer."""


@dataclass(slots=True, eq=False)
class Question:
    """An event that a step waits for, or has waited for and not ended since."""

    branch: Branch
    kind: Kind
    key: tuple[str, str]
    """The name of the step, and that of its wait."""
    is_answered: bool = False
    """Whether the event has come, or the time limit is over."""

    def add(self) -> None:
        """Count the question."""
        branch, kind = self.branch, self.kind
        kind.questions[self] = None
        kind.steps[branch.step] += 1
        kind.asking += branch.open > 0
        kind.working += branch.working > 0
        branch.questions[self] = None
        if not self.is_answered:
            kind.open += 1
            branch.change(open=1)

    def answer(self) -> bool:
        """Note that the question is answered. See `Branch.change`."""
        self.is_answered = True
        self.kind.open -= 1
        return self.branch.change(open=-1)

    def remove(self) -> None:
        """Do not count the question, which is answered, any more."""
        branch, kind = self.branch, self.kind
        del branch.questions[self]
        kind.working -= branch.working > 0
        kind.asking -= branch.open > 0
        kind.steps -= Counter([branch.step])
        del kind.questions[self]


@dataclass(frozen=True, slots=True)
class _Shape:
    """Which class and which fields of an event are compared."""

    awaited: type[Event]
    takes_subclasses: bool
    names: tuple[str, ...]

    def values_of(self, event: Event) -> tuple[Any, ...] | None:
        """Return the compared fields of an event. None: it has another class."""
        if not event_matches(event, self.awaited, allow_subclasses=self.takes_subclasses):
            return None
        return tuple([getattr(event, name, None) for name in self.names])


@dataclass(slots=True)
class _Kinds:
    """The kinds of one shape."""

    by_values: dict[tuple[Any, ...], Kind] = field(default_factory=dict)
    unhashable: list[Kind] = field(default_factory=list)

    def get(self, shape: _Shape, values: tuple[Any, ...]) -> Kind:
        try:
            return self.by_values.setdefault(values, Kind(shape, values))
        except TypeError:
            known = next((each for each in self.unhashable if each.values == values), None)
            if known is None:
                known = Kind(shape, values)
                self.unhashable.append(known)
            return known

    def taking(self, values: tuple[Any, ...]) -> Iterator[Kind]:
        try:
            found = self.by_values.get(values)
        except TypeError:
            yield from (each for each in self.by_values.values() if each.values == values)
        else:
            if found is not None:
                yield found
        yield from (each for each in self.unhashable if each.values == values)

    def remove(self, kind: Kind) -> None:
        if kind in self.unhashable:
            self.unhashable.remove(kind)
        else:
            del self.by_values[kind.values]


class QuestionIndex:
    """All kinds of questions of a run."""

    def __init__(self) -> None:
        self._shapes: dict[_Shape, _Kinds] = {}

    def kind(self, awaited: type[Event], requirements: Mapping[str, Any], *, takes_subclasses: bool) -> Kind:
        """Return the kind of a question.

        Args:
            awaited: The class of the answer.
            requirements: The fields of the answer that must have these values.
            takes_subclasses: Whether an answer may be of a derived class.
        """
        names = sorted(requirements)
        shape = _Shape(awaited, takes_subclasses, tuple(names))
        kinds = self._shapes.setdefault(shape, _Kinds())
        return kinds.get(shape, tuple([requirements[name] for name in names]))

    def taking(self, event: Event) -> list[Kind]:
        """Return the questions for which the library would run a step again with this event."""
        found: list[Kind] = []
        for shape, kinds in self._shapes.items():
            values = shape.values_of(event)
            if values is not None:
                found += kinds.taking(values)
        return found

    def forget(self, kind: Kind) -> None:
        """Remove a kind of which there are no questions any more."""
        if not kind.questions:
            self._shapes[kind.shape].remove(kind)
            if not self._shapes[kind.shape].by_values and not self._shapes[kind.shape].unhashable:
                del self._shapes[kind.shape]
