"""Warns about steps that change attributes of a workflow object that several runs share.

Such a step gives one run the data of another. A step is compared before and after it runs: which attributes
the object has, and which objects they are. What changes inside an attribute, such as a list, is not noticed.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from operator import is_
from typing import Any, Final

from workflows import Workflow

from llama_deploy.workflow_library import library_attributes, steps_of

logger = logging.getLogger(__name__)

_OUR_PREFIX: Final = "__llama_deploy"
_MISSING: Final = object()
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
    """Compares the objects that the runs of one service share, and warns once.

    Args:
        service_name: The service.
    """

    def __init__(self, service_name: str) -> None:
        self._service_name = service_name
        self._running: list[_Running] = []
        self.has_warned = False

    @contextmanager
    def compared(self, workflow: Workflow, name: str) -> Iterator[None]:
        """Warn if the attributes of an object change meanwhile.

        Args:
            workflow: The object.
            name: What runs: the name of a step, or `run`.
        """
        # A copy of a dict with texts as its keys is atomic, also beside steps in threads.
        running = _Running(workflow, name, dict(vars(workflow)))
        self._running.append(running)
        try:
            yield
        finally:
            self._running.remove(running)
            after = dict(vars(workflow))
            if not self.has_warned and not _is_same(running.before, after):
                self._report(running, after)

    def _report(self, ended: _Running, after: dict[str, Any]) -> None:
        workflow = ended.workflow
        changed = next(_changed_by_steps(workflow, ended.before, after), None)
        if changed is None:
            return
        self.has_warned = True
        # What ran at the same time may have done it.
        names = {
            each.name
            for each in (ended, *self._running)
            if each.workflow is workflow and _differs(changed, each.before, after)
        }
        logger.warning(
            "service %s: %s has changed `self.%s`, which all runs share: one user may get the data of"
            " another. Serve the class %s, or a function that returns a new workflow, instead of an instance;"
            " each run then has an object of its own. Set what all runs may share in `__init__`, or use a"
            " `cached_property` or a `Resource`",
            self._service_name,
            "the method 'run'" if names == {RUN} else f"the step {' or '.join(map(repr, sorted(names)))}",
            changed,
            type(workflow).__qualname__,
            extra={"action": "shared_state", "service_name": self._service_name},
        )


@dataclass(frozen=True, slots=True)
class SharedObject:
    """An object that runs of a service share."""

    workflow: Workflow
    state: SharedState


sharing: ContextVar[SharedObject | None] = ContextVar("sharing", default=None)
"""The object that is compared in the runs that are started in this context."""


def _is_same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two states of an object have the same attributes, which are the same objects."""
    return before.keys() == after.keys() and all(map(is_, map(after.__getitem__, before), before.values()))


def _differs(name: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.get(name, _MISSING) is not after.get(name, _MISSING)


def _changed_by_steps(workflow: Workflow, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Yield the attributes in which two states differ, but not those of the library, of ours, and caches."""
    others = _LIBRARY | steps_of(workflow).keys()
    for name in {**before, **after}:
        if not _differs(name, before, after) or name in others or name.startswith(_OUR_PREFIX):
            continue
        declared = inspect.getattr_static(type(workflow), name, None)
        if not isinstance(declared, cached_property):
            yield name
