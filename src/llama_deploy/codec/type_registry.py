"""Which classes a workflow's values may have: what is declared, and how a name finds its class."""

from __future__ import annotations

import abc
import enum
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Final, Generic, Protocol

from pydantic import BaseModel, RootModel
from workflows import Workflow

from llama_deploy.codec.agents import agent_types, data_types, refusal
from llama_deploy.codec.annotations import has_fields, is_model, reachable
from llama_deploy.codec.library import GENERIC_EVENTS, library_types
from llama_deploy.errors import SerializationError
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
"""Roots of libraries that this package does not import."""
_HOMES_OF_LIBRARIES: Final = frozenset({"llama_deploy", "llama_index", "pydantic", "workflows"})
"""Packages whose modules have the same name in every process."""


def qualified_name(cls: type) -> str:
    """Return `module.Class`, with the classes and functions that it is nested in."""
    return f"{cls.__module__}.{cls.__qualname__}"


class TypeRegistry:
    """The classes that may be encoded and decoded, by name. It never imports.

    Known are the declared classes and, as far as they are loaded when it is made, their subclasses and what
    the fields of all these are declared to hold; but of a class that anybody's are derived from, such as
    `BaseModel`, `Event` or `Exception`, no subclasses. What is loaded later stays unknown, because a process
    that has done no more than import the workflow could not read it: a service makes its registry when it is
    made itself, before a step runs. A few classes that only look like data are never known, see
    `codec.agents`.

    Args:
        types: The declared classes; see `declared_types`.
    """

    def __init__(self, types: Iterable[type]) -> None:
        self._by_name: dict[str, type | None] = {}
        self._by_bare_name: dict[str, type | None] = {}
        self._index(_with_subclasses(types))

    def find(self, name: str) -> type | None:
        """Return the class with this name, None if none is known or several are.

        Args:
            name: `module.Class`, with or without what the class is nested in. Where the module is another
                one, as `__main__` is for a script, the bare name does, if only one class is called so.
        """
        if name in self._by_name:
            return self._by_name[name]
        if name.partition(".")[0] in _HOMES_OF_LIBRARIES:
            return None
        return self._by_bare_name.get(name.rpartition(".")[2])

    def resolve(self, name: str) -> type:
        """Return the class with this name; see `find`.

        Raises:
            SerializationError: None is known.
        """
        cls = self.find(name)
        if cls is None:
            raise SerializationError(f"$ {self.unknown(name)}")
        return cls

    def name_of(self, cls: type) -> str | None:
        """Return the name by which `find` finds a class; None if it does not."""
        name = qualified_name(cls)
        return name if self.find(name) is cls else None

    def refusal_of(self, cls: type) -> str:
        """Say why a class is refused, and what to do; it goes on after the name of a place."""
        name = qualified_name(cls)
        if (reason := refusal(cls)) is not None:
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
                f"is a {name}, which was not there when the service started, so no other process could read "
                "it: import it at the top of the module of the workflow, name it in `allowed_types` of the "
                "service, or exclude the field"
            )
        return (
            f"is a {name}, which is not declared: import it at the top of the module of the workflow, name "
            "it in `allowed_types` of the service, use it in an annotation of the workflow's events or "
            "state, or exclude the field"
        )

    def unknown(self, name: str) -> str:
        """Say that no class has this name; it goes on after the name of a place."""
        return (
            f"names the class {name[:200]!r}, which is not declared here: import it at the top of the module "
            "of the workflow, or name it in `allowed_types` of the service"
        )

    def _index(self, classes: Iterable[type]) -> None:
        for cls in classes:
            if refusal(cls) is not None:
                continue
            # The library writes `module.__name__`, so nested classes have two names.
            for name in {qualified_name(cls), f"{cls.__module__}.{cls.__name__}"}:
                self._by_name[name] = cls if self._by_name.get(name, cls) is cls else None
            if cls.__module__.partition(".")[0] not in _HOMES_OF_LIBRARIES:
                bare = cls.__name__
                self._by_bare_name[bare] = cls if self._by_bare_name.get(bare, cls) is cls else None


def _with_subclasses(types: Iterable[type]) -> dict[type, None]:
    """Return classes with their loaded subclasses, and with what the fields of these hold."""
    known = dict.fromkeys(types)
    while derived := [cls for known_cls in known for cls in _subclasses(known_cls) if cls not in known]:
        known |= reachable(derived)
    return known


def _is_root(cls: type) -> bool:
    """Return whether the subclasses of a class are known with it: not if anybody's are derived from it."""
    return not (cls in _GENERIC or qualified_name(cls) in _GENERIC_NAMES or cls.__module__ == "builtins")


def _origin_of(cls: type) -> type | None:
    """Return the generic model that a class is a parametrisation of."""
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

    These are its events, its state, the library's own events and ticks, what the state of an agent of
    llama_index holds, llama_index's nodes and messages if it is loaded, `extra`; the models, dataclasses,
    enums and exceptions that are known by name in the modules where the workflow's classes stand; and what
    the fields of all these are declared to hold.

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
                *_in_modules_of(type(workflow)),
            ]
        )
    )


def _in_modules_of(cls: type) -> Iterator[type]:
    """Return the classes in the globals of a user's modules in which a class and its bases stand."""
    for name in dict.fromkeys(base.__module__ for base in cls.__mro__):
        module = sys.modules.get(name)
        root = name.partition(".")[0]
        if module is None or root in _HOMES_OF_LIBRARIES or root in sys.stdlib_module_names:
            continue
        for value in list(vars(module).values()):
            if isinstance(value, type) and (has_fields(value) or issubclass(value, Enum | BaseException)):
                yield value
