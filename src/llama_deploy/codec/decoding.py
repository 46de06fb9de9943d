"""Decodes JSON values to Python values. A name in the data never causes an import.

Names are looked up among the declared classes, the builtin exceptions and the lists of `codec.known_classes`;
only objects of these are built.
The following code runs during decoding, and must therefore withstand bad data:

* of declared classes: `__new__` of models and exceptions, the factories and the copying of defaults,
  `_missing_` of flags, `__set__` of descriptors that are fields of dataclasses, and hashing and comparison in
  sets and as keys;
* the constructors of builtin exceptions and of values of the standard library and pydantic.

No `__init__`, `__post_init__` or validator runs. An exception is also built when it is encoded, to check that
it can be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llama_deploy.codec.encoding import TAG
from llama_deploy.codec.faults import Fault
from llama_deploy.codec.forms import Form, form_of
from llama_deploy.codec.known_classes import build_scalar, class_value
from llama_deploy.codec.type_registry import TypeRegistry
from llama_deploy.codec.values import SPECIAL_KINDS, VALUE_KINDS, expect
from llama_deploy.portability.json_parts import step_to

_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_BUILDERS: Final[dict[str, Callable[..., object]]] = {
    **SPECIAL_KINDS,
    **{kind.name: kind.build for kind in VALUE_KINDS},
    "numpy": build_scalar,
}


class Decoder:
    """Decodes what an encoder with an equal registry has written."""

    def __init__(self, registry: TypeRegistry) -> None:
        self._registry = registry
        self._forms: dict[str, Form | None] = {}

    def decode(self, data: Any) -> Any:
        """Return the value of JSON values.

        Raises:
            Fault: An encoder has not written them, or it knew other classes.
            Exception: What the standard library, or the code of a declared class, raises for bad data.
        """
        cls = type(data)
        if cls in _PLAIN:
            return data
        if cls is dict:
            return self._tagged(data) if TAG in data else self._mapping(data)
        if cls is list:
            return self._list(data)
        raise Fault(f"is a {cls.__name__}, which is not JSON")

    def _list(self, data: list[Any]) -> list[Any]:
        if _PLAIN.issuperset(map(type, data)):
            return data.copy()
        decoded: list[Any] = []
        try:
            for item in data:
                # One by one: the number of items is the place of a fault.
                decoded.append(item if type(item) in _PLAIN else self.decode(item))  # noqa: PERF401
        except Fault as fault:
            fault.within(data, f"[{len(decoded)}]")
            raise
        return decoded

    def _mapping(self, data: dict[str, Any]) -> dict[str, Any]:
        decoded: dict[str, Any] = {}
        key = None
        try:
            for key, item in data.items():
                decoded[key] = item if type(item) in _PLAIN else self.decode(item)
        except Fault as fault:
            fault.within(data, step_to(key))
            raise
        return decoded

    def _tagged(self, data: dict[str, Any]) -> Any:
        spec = data[TAG]
        if len(data) != 1 or type(spec) is not list or not spec or type(spec[0]) is not str:
            raise Fault(f"has the reserved key {TAG!r}, but not the form that belongs to it")
        kind, *parts = spec
        build = _BUILDERS.get(kind)
        if build is not None:
            return build(*map(self.decode, parts))
        if not parts or type(parts[0]) is not str:
            raise Fault(f"is of the kind {kind!r}, but does not name a class")
        if kind == "class":
            return class_value(parts[0]) or self._class(*parts)
        form = self._form_of(parts[0])
        if form is None or form.kind != kind:
            raise Fault(f"is of the kind {kind!r}, which {parts[0]} is not")
        return form.build(*map(self.decode, parts[1:]))

    def _form_of(self, name: str) -> Form | None:
        if name not in self._forms:
            self._forms[name] = form_of(self._class(name))
        return self._forms[name]

    def _class(self, name: object) -> type:
        cls = self._registry.load(expect(str, name))
        if cls is None:
            raise Fault(self._registry.unknown(expect(str, name)))
        return cls
