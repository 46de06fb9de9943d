"""From JSON values back to values. No name in the data leads to an import.

A name is looked up among the declared classes and the builtin exceptions; what is built are objects of these.
Code that runs on the way, and so has to stand bad data:

* of declared classes: `__new__` of models and exceptions, the factories and the copying of defaults,
  `_missing_` of flags, `__set__` of descriptors that are fields of dataclasses, and how they hash and
  compare, in sets and as keys;
* the constructors of builtin exceptions and of the standard library's and pydantic's values.

Nothing else: no `__init__`, no `__post_init__`, no validator. An exception is also built when it is encoded,
to see that it can be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llama_deploy.codec.encoding import TAG
from llama_deploy.codec.faults import Fault, step_to
from llama_deploy.codec.forms import Form, form_of
from llama_deploy.codec.type_registry import TypeRegistry
from llama_deploy.codec.values import SPECIAL_KINDS, VALUE_KINDS, expect

_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_BUILDERS: Final[dict[str, Callable[..., object]]] = SPECIAL_KINDS | {
    kind.name: kind.build for kind in VALUE_KINDS
}


class Decoder:
    """Decodes what an encoder with an equal registry wrote."""

    def __init__(self, registry: TypeRegistry) -> None:
        self._registry = registry
        self._forms: dict[str, Form | None] = {}

    def decode(self, data: Any) -> Any:
        """Return the value that JSON values hold.

        Raises:
            Fault: They were not written by an encoder, or by one that knew other classes.
            Exception: What the standard library, or the code of a declared class, raises at data that does
            not fit.
        """
        cls = type(data)
        if cls in _PLAIN:
            return data
        if cls is dict:
            return self._tagged(data) if TAG in data else self._mapping(data)
        if cls is list:
            return self._list(data)
        raise Fault(f"is a {cls.__name__}, which is no JSON")

    def _list(self, data: list[Any]) -> list[Any]:
        if _PLAIN.issuperset(map(type, data)):
            return data.copy()
        decoded: list[Any] = []
        try:
            for item in data:
                # One by one, so that their number tells the place of a fault.
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
            raise Fault(f"has the reserved key {TAG!r}, but is not of the form that goes with it")
        kind, *parts = spec
        build = _BUILDERS.get(kind)
        if build is not None:
            return build(*map(self.decode, parts))
        if not parts or type(parts[0]) is not str:
            raise Fault(f"is of the kind {kind!r}, but names no class")
        if kind == "class":
            return self._class(*parts)
        form = self._form_of(parts[0])
        if form is None or form.kind != kind:
            raise Fault(f"is of the kind {kind!r}, which {parts[0]} is not")
        return form.build(*map(self.decode, parts[1:]))

    def _form_of(self, name: str) -> Form | None:
        if name not in self._forms:
            self._forms[name] = form_of(self._class(name))
        return self._forms[name]

    def _class(self, name: object) -> type:
        cls = self._registry.find(expect(str, name))
        if cls is None:
            raise Fault(self._registry.unknown(expect(str, name)))
        return cls
