"""The data that the attributes of a workflow object hold, to notice what changes inside of them.

Data are containers, models and dataclasses, at any depth. Objects of other classes, such as clients, change
inside for reasons of their own, and are not looked into.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import is_
from typing import Any, Final, Self, cast

from pydantic import BaseModel
from workflows import Workflow

MAX_VALUES: Final = 1_000
"""How many values are looked at. Of a container with more values than are left, the length is compared."""
_CONTAINERS: Final = (list, dict, tuple, set, deque, bytearray)
_CHANGEABLE: Final = (list, dict, set, deque, bytearray)
_COPIED_AS_THEMSELVES: Final[tuple[type[Any], ...]] = (dict, list, set, bytearray)
_WITHOUT_PARTS: Final = (str, int, float, bytes, type(None), Workflow)
"""Values without data inside, and workflows, which keep what belongs to the library in their attributes."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A container, a model or a dataclass, with what was in it."""

    attribute: str
    value: Any
    length: int
    before: Any
    """A copy. None: only its length is compared."""

    @property
    def is_changed(self) -> bool:
        container, before = _container_of(self.value), self.before
        if before is None or len(container) != self.length:
            return len(container) != self.length
        after = _copy(container)
        if isinstance(after, dict):
            return after.keys() != before.keys() or not all(map(is_, map(after.get, before), before.values()))
        if isinstance(after, set | bytearray):
            return bool(after != before)
        return not all(map(is_, after, before))


def _copy(container: Any) -> Any:
    """Copy a container by its base class, whatever a derived class makes of it."""
    for cls in _COPIED_AS_THEMSELVES:
        if isinstance(container, cls):
            return cls.copy(container)
    return list(container)


@dataclass(frozen=True, slots=True, eq=False)
class HeldData:
    """What attributes held at some moment."""

    _parts: list[_Part]

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Self:
        """Note what attributes hold. A copy of a container is atomic, also beside steps in threads."""
        parts: list[_Part] = []
        seen: set[int] = set()
        found = deque(attributes.items())
        left = MAX_VALUES
        while found and left:
            name, value = found.popleft()
            left -= 1
            container = _container_of(value)
            if container is None or id(value) in seen:
                continue
            seen.add(id(value))
            length = len(container)
            before = None if length > left else _copy(container)
            if isinstance(container, _CHANGEABLE):
                parts.append(_Part(name, value, length, before))
            if before is not None:
                found.extend((name, each) for each in _inside(before))
        return cls(parts)

    def changed(self) -> list[str]:
        """Return the attributes in which something has changed since."""
        return list(dict.fromkeys(part.attribute for part in self._parts if part.is_changed))


def _container_of(value: object) -> Any:
    """Return a container, or the declared fields of a model or dataclass as a dict; None for other values."""
    # The classes of proxies, which `isinstance` would ask, may do anything.
    cls = type(value)
    if issubclass(cls, _WITHOUT_PARTS):
        return None
    if issubclass(cls, _CONTAINERS):
        return value
    if issubclass(cls, BaseModel):
        fields = vars(value)
        declared = {name: fields[name] for name in cls.model_fields if name in fields}
        return declared | (cast("BaseModel", value).model_extra or {})
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return None


def _inside(copied: Any) -> Iterable[object]:
    """Return the values in a copied container that may be data; a set contains none that can change."""
    if isinstance(copied, dict):
        return copied.values()
    return () if isinstance(copied, set | bytearray) else copied
