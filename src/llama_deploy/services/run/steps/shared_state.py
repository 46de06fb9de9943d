"""Notices steps that change attributes of their workflow object, which are not stored with the run.

If several runs share the object, such a step also gives one run the data of another. The object is compared
before and after each step: which attributes it has, which objects they are, and the data inside of them. Data
inside of a shared object belong to no run, so a run that changes them is not volatile.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from operator import is_
from typing import Any, Final
from weakref import ref

from workflows import Workflow

from llama_deploy.services.run.steps.held_data import HeldData
from llama_deploy.workflow_library import library_attributes, steps_of

logger = logging.getLogger(__name__)

_OUR_PREFIX: Final = "__llama_deploy"
_MISSING: Final = object()
_NOTHING: Final = nullcontext()
_LIBRARY: Final = library_attributes()
RUN: Final = "run"
"""The name of a workflow's own method that starts its runs."""


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    """Code of a shared object that is running."""

    workflow: Workflow
    name: str
    before: dict[str, Any]
    """The attributes of the object when it began."""


class SharedState:
    """Compares the workflow objects of one service, and warns once if runs share one that changes.

    Args:
        service_name: The service.
    """

    def __init__(self, service_name: str) -> None:
        self._service_name = service_name
        self._running: list[_Running] = []
        self.has_warned = False

    @contextmanager
    def compared(
        self, workflow: Workflow, name: str, *, is_shared: bool, on_change: Callable[[str], None] | None
    ) -> Iterator[None]:
        """Notice if the attributes of an object change meanwhile.

        Args:
            workflow: The object.
            name: What runs: the name of a step, or `run`.
            is_shared: Whether several runs share the object. The first change is then logged.
            on_change: Called with what has changed, in words.
        """
        # A copy of a dict with texts as its keys is atomic, also beside steps in threads.
        running = _Running(workflow, name, dict(vars(workflow)))
        held = None
        if not is_shared or not self.has_warned:
            held = HeldData.of(_without_library(running.before))
        self._running.append(running)
        try:
            yield
        finally:
            self._running.remove(running)
            after = dict(vars(workflow))
            if not _is_same(running.before, after):
                changed = next(_changed_by_steps(workflow, running.before, after), None)
                if changed is not None and on_change is not None:
                    on_change(f"{_source([name])} has set `self.{changed}`")
                if changed is not None and is_shared and not self.has_warned:
                    # What ran at the same time may have done it.
                    suspects = [each for each in self._running if _differs(changed, each.before, after)]
                    self._warn(changed, running, suspects)
            if held is not None and (inside := held.changed()):
                names = list(_of_steps(workflow, inside))
                self._tell(running, names, is_shared=is_shared, on_change=on_change)

    def _tell(
        self,
        ended: _Running,
        names: Sequence[str],
        *,
        is_shared: bool,
        on_change: Callable[[str], None] | None,
    ) -> None:
        """Tell of attributes in which data have changed."""
        if not is_shared and on_change is not None:
            for name in names:
                on_change(f"{_source([ended.name])} has changed `self.{name}`")
        if is_shared and names and not self.has_warned:
            self._warn(names[0], ended, self._running)

    def _warn(self, changed: str, ended: _Running, suspects: Sequence[_Running]) -> None:
        workflow = ended.workflow
        self.has_warned = True
        names = {each.name for each in (ended, *suspects) if each.workflow is workflow}
        logger.warning(
            "service %s: %s has changed `self.%s`, which all runs share: one user may get the data of"
            " another. Serve the class %s, or a function that returns a new workflow, instead of an instance;"
            " each run then has an object of its own. Set what all runs may share in `__init__`, or use a"
            " `cached_property` or a `Resource`",
            self._service_name,
            _source(names),
            changed,
            type(workflow).__qualname__,
            extra={"action": "shared_state", "service_name": self._service_name},
        )


@dataclass(frozen=True, slots=True)
class RunObject:
    """The workflow object of a run."""

    workflow: ref[Workflow]
    """Weak: the contexts of cancelled timers, which hold this, outlive the run."""
    state: SharedState
    is_shared: bool

    def compared(
        self, workflow: object, name: str, on_change: Callable[[str], None] | None
    ) -> AbstractContextManager[None]:
        """Notice what changes in the workflow object of the run; see `SharedState.compared`.

        Another workflow is not compared: steps may run steps of other workflows.
        """
        mine = self.workflow()
        if workflow is not mine or mine is None:
            return _NOTHING
        if on_change is None and (not self.is_shared or self.state.has_warned):
            return _NOTHING
        return self.state.compared(mine, name, is_shared=self.is_shared, on_change=on_change)


run_object: ContextVar[RunObject | None] = ContextVar("run_object", default=None)
"""The object of the runs that are started in this context."""


def _source(names: Iterable[str]) -> str:
    """Return what runs, in words."""
    names = sorted(names)
    return "the method 'run'" if names == [RUN] else f"the step {' or '.join(map(repr, names))}"


def _is_same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two states of an object have the same attributes, which are the same objects."""
    return before.keys() == after.keys() and all(map(is_, map(after.__getitem__, before), before.values()))


def _differs(name: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.get(name, _MISSING) is not after.get(name, _MISSING)


def _changed_by_steps(workflow: Workflow, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Yield the attributes in which two states differ, but not those of the library, of ours, and caches."""
    return _of_steps(workflow, (name for name in {**before, **after} if _differs(name, before, after)))


def _of_steps(workflow: Workflow, names: Iterable[str]) -> Iterator[str]:
    """Yield the names but those of the library, of ours, and caches."""
    others = _LIBRARY | steps_of(workflow).keys()
    for name in names:
        if name in others or name.startswith(_OUR_PREFIX):
            continue
        declared = inspect.getattr_static(type(workflow), name, None)
        if not isinstance(declared, cached_property):
            yield name


def _without_library(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in _LIBRARY}
