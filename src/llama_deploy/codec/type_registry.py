"""Which classes a workflow's values may have, and how a class is found by its name."""

from __future__ import annotations

import abc
import enum
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum
from types import FunctionType, ModuleType
from typing import Final, Generic, Protocol

from pydantic import BaseModel, RootModel
from workflows import Workflow
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent

from llama_deploy.codec.agents import agent_types, data_types
from llama_deploy.codec.annotations import has_fields, is_model, reachable
from llama_deploy.codec.known_classes import LLAMA_INDEX, find_known
from llama_deploy.codec.library import GENERIC_EVENTS, library_types
from llama_deploy.errors import SerializationError
from llama_deploy.portability.live_objects import rejection
from llama_deploy.portability.module_names import stable_name
from llama_deploy.workflow_library import infer_state_type

_GENERIC: Final[frozenset[object]] = GENERIC_EVENTS | {
    object,
    type,
    tuple,
    BaseModel,
    RootModel,
    Generic,
    Protocol,
    abc.ABC,
    *(cls for cls in vars(enum).values() if isinstance(cls, type)),
}
_GENERIC_NAMES: Final = frozenset({"llama_index.core.schema.BaseComponent"})
"""Base classes of libraries that this package does not import."""
ALLOW_IT: Final = (
    "name it with `--allow-type` of llamactl or in the setting `allowed_types` of the service"
    " (LLAMA_DEPLOY_WF_SERVICE_ALLOWED_TYPES)"
)
"""What to do about a class that is not known."""
_NEAR: Final = 3
"""Over how many imports the events of questions and answers are searched."""
_LIBRARIES: Final = frozenset({"llama_deploy", "llama_index", "pydantic", "workflows"})
"""Packages whose modules have the same name in every process."""


def qualified_name(cls: type) -> str:
    """Return `module.Class`, including the classes and functions in which it is nested.

    It is the same in every process that runs the file, also as a script; see `module_names`.
    """
    return f"{stable_name(cls.__module__)}.{cls.__qualname__}"


def is_of_library(name: str) -> bool:
    """Whether a class with this name belongs to a library whose versions read each other's data."""
    return name.partition(".")[0] in _LIBRARIES


class TypeRegistry:
    """The classes that may be encoded and decoded, by name. It imports only what `codec.known_classes` lists.

    It knows those, the declared classes, their subclasses, and the classes in the annotations of their
    fields, if they are loaded when the registry is created. Subclasses of general base classes such as
    `BaseModel`, `Event` or `Exception` are not included. A class that is loaded later is not known, because
    a process that has only imported the workflow could not read it: a service creates its registry before any
    step runs. A few classes that only look like data are never known, see `live_objects`.

    Args:
        types: The declared classes; see `declared_types`.
    """

    def __init__(self, types: Iterable[type]) -> None:
        self._by_name: dict[str, type | None] = {}
        self._by_bare_name: dict[str, type | None] = {}
        self._index(_with_subclasses(types))

    def find(self, name: str) -> type | None:
        """Return the class with this name. None: no class has it, or several.

        Args:
            name: `module.Class`, with or without the classes in which it is nested. If the module differs, as
                `__main__` does for a script, the bare name is enough if only one class has it.
        """
        if name in self._by_name:
            return self._by_name[name]
        if is_of_library(name):
            return None
        return self._by_bare_name.get(name.rpartition(".")[2])

    @property
    def users_classes(self) -> dict[str, type]:
        """The classes that do not belong to a library, by qualified name."""
        found = {qualified_name(cls): cls for cls in self._by_name.values() if cls is not None}
        return {name: cls for name, cls in sorted(found.items()) if not is_of_library(name)}

    def load(self, name: str) -> type | None:
        """Return the class with this name; see `find`. A class of `codec.known_classes` is imported."""
        cls = self.find(name)
        if cls is None and name.partition(".")[0] == LLAMA_INDEX and (known := find_known(name)) is not None:
            self._index(each for each in _with_subclasses(reachable([known])) if _is_of_llama_index(each))
            cls = self.find(name)
        return cls

    def resolve(self, name: str) -> type:
        """Return the class with this name; see `load`.

        Raises:
            SerializationError: No such class is known.
        """
        cls = self.load(name)
        if cls is None:
            raise SerializationError(f"$ {self.unknown(name)}")
        return cls

    def name_of(self, cls: type) -> str | None:
        """Return the name by which `find` finds a class. None: it does not find it."""
        name = qualified_name(cls)
        return name if self.load(name) is cls else None

    def rejection_of(self, cls: type) -> str:
        """Return why a class is rejected, and what to do. The text follows the name of a place."""
        name = qualified_name(cls)
        if (reason := rejection(cls)) is not None:
            return f"is a {name}, {reason}"
        if self._by_name.get(name, cls) is not cls:
            return f"is a {name}, and several classes have this name: rename one"
        origin = _origin_of(cls)
        if origin is not None and self.name_of(origin) is not None:
            return (
                f"is a {name}, which did not exist yet when the service started, so no other process could "
                f"read it: give it a name in the module of the workflow (`Name = {cls.__name__}`), use it in "
                "an annotation of the workflow's events or state, or exclude the field"
            )
        if any(_is_root(base) and self.name_of(base) is not None for base in cls.__mro__):
            return (
                f"is a {name}, which was not loaded when the service started, so no other process could read "
                f"it: import it at the top of the module of the workflow, {ALLOW_IT}, or exclude the field"
            )
        return (
            f"is a {name}, which is not declared: import it at the top of the module of the workflow, "
            f"{ALLOW_IT}, use it in an annotation of the workflow's events or state, or exclude the field"
        )

    def unknown(self, name: str) -> str:
        """Return that no class has this name. The text follows the name of a place."""
        return (
            f"names the class {name[:200]!r}, which is not declared here: import it at the top of the module "
            f"of the workflow, or {ALLOW_IT}"
        )

    def _index(self, classes: Iterable[type]) -> None:
        for cls in classes:
            if rejection(cls) is not None:
                continue
            # The library writes `module.__name__`, also of a nested class and of `__main__`.
            for name in {
                qualified_name(cls),
                f"{stable_name(cls.__module__)}.{cls.__name__}",
                f"{cls.__module__}.{cls.__name__}",
            }:
                self._by_name[name] = cls if self._by_name.get(name, cls) is cls else None
            if cls.__module__.partition(".")[0] not in _LIBRARIES:
                bare = cls.__name__
                self._by_bare_name[bare] = cls if self._by_bare_name.get(bare, cls) is cls else None


def _with_subclasses(types: Iterable[type]) -> dict[type, None]:
    """Return classes with their loaded subclasses, and with what the fields of these hold."""
    known = dict.fromkeys(types)
    while derived := [cls for known_cls in known for cls in _subclasses(known_cls) if cls not in known]:
        known |= reachable(derived)
    return known


def _is_of_llama_index(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == LLAMA_INDEX


def _is_root(cls: type) -> bool:
    """Return whether the subclasses of a class are known with it; not those of a general base class."""
    return not (cls in _GENERIC or qualified_name(cls) in _GENERIC_NAMES or cls.__module__ == "builtins")


def _origin_of(cls: type) -> type | None:
    """Return the generic model of which a class is a parametrisation."""
    origin: type | None = cls.__pydantic_generic_metadata__["origin"] if is_model(cls) else None
    return origin


def _subclasses(cls: type) -> Iterator[type]:
    """Return the loaded subclasses of a class, at any depth, if it is a root."""
    if not _is_root(cls):
        return
    child: type
    for child in type.__subclasses__(cls):
        yield child
        yield from _subclasses(child)


def declared_types(workflow: Workflow, extra: Iterable[type] = ()) -> set[type]:
    """Return the classes that a workflow's values may have.

    These are: its events and state; the library's own events and ticks; what the state of an agent of
    llama_index contains; llama_index's nodes and messages if it is loaded; `extra`; the models, dataclasses,
    enums and exceptions that are defined or imported in the modules of the workflow's classes; the questions
    and answers in the modules from which these import; and the classes in the annotations of the fields of
    all these.

    Args:
        workflow: The workflow.
        extra: Further classes, such as events that appear only in `ctx.wait_for_event`.
    """
    return set(
        reachable(
            [
                *workflow.events,
                workflow.start_event_class,
                workflow.stop_event_class,
                infer_state_type(workflow),
                *library_types(),
                *agent_types(type(workflow)),
                *data_types(),
                *extra,
                *classes_in_modules_of(type(workflow)),
                *questions_and_answers_near(type(workflow)),
            ]
        )
    )


def classes_in_modules_of(cls: type) -> Iterator[type]:
    """Return the classes with data in the globals of the user's modules that define a class and its bases."""
    for module in _modules_of(cls):
        for value in list(vars(module).values()):
            if isinstance(value, type) and (has_fields(value) or issubclass(value, Enum | BaseException)):
                yield value


def questions_and_answers_near(cls: type) -> Iterator[type[Event]]:
    """Return the events with which functions that a workflow's modules import may ask people.

    These are the classes derived from `InputRequiredEvent` and `HumanResponseEvent` in the user's modules
    that define the class and its bases, and in those from which they import something, directly or not.
    """
    near, waiting = set[str](), deque((module, _NEAR) for module in _modules_of(cls))
    while waiting:
        module, distance = waiting.popleft()
        if module.__name__ in near:
            continue
        near.add(module.__name__)
        for value in list(vars(module).values()):
            if isinstance(value, type) and issubclass(value, InputRequiredEvent | HumanResponseEvent):
                yield value
            if distance and isinstance(value, ModuleType | FunctionType | type):
                name = value.__name__ if isinstance(value, ModuleType) else value.__module__
                waiting.extend((each, distance - 1) for each in _users_modules([name]))


def _modules_of(cls: type) -> Iterator[ModuleType]:
    """Return the user's modules that define a class and its bases."""
    return _users_modules(dict.fromkeys(base.__module__ for base in cls.__mro__))


def _users_modules(names: Iterable[str]) -> Iterator[ModuleType]:
    for name in names:
        module = sys.modules.get(name)
        root = name.partition(".")[0]
        if module is not None and root not in _LIBRARIES and root not in sys.stdlib_module_names:
            yield module
