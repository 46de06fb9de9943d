"""Encodes Python values as JSON values: dispatch by exact class, through one table.

Plain JSON stays as it is. Everything else becomes `{"$": [kind, ...]}`. A mapping with the key `$` is written
as a list of pairs, so that data cannot be mistaken for such a tag.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from llama_deploy.codec.agents import raw_fields
from llama_deploy.codec.exceptions import DescribedError, builtin_arguments, describe
from llama_deploy.codec.faults import Fault
from llama_deploy.codec.forms import Form, PrivateAttributes, form_of
from llama_deploy.codec.known_classes import is_scalar, name_of_class_value, take_scalar
from llama_deploy.codec.reducing import LEVELS, reduced
from llama_deploy.codec.type_registry import TypeRegistry, is_of_library, qualified_name
from llama_deploy.codec.values import VALUE_KINDS, expect, take_float, take_integer, take_text
from llama_deploy.portability.json_parts import step_to
from llama_deploy.portability.live_objects import (
    is_code,
    is_filled,
    rejection,
    rejection_of_secret,
    secret_fields,
)

logger = logging.getLogger(__name__)

TAG: Final = "$"
"""The reserved key."""
MAX_DEPTH: Final = 100
"""How deep lists, mappings and objects may be nested.

Their JSON is up to four times as deep, which Python's parser can read within its recursion limit.
"""

_MAX_PLAIN_INTEGER: Final = 1 << 1024
"""Smaller integers are plain. Python does not read integers of 4300 digits (`sys.set_int_max_str_digits`)."""

_Handler = Callable[[Any, int], Any]


class Encoder:
    """Encodes values of the classes that a registry knows."""

    def __init__(self, registry: TypeRegistry) -> None:
        self._registry = registry
        self.noted: dict[str, bool] | None = None
        """The names of the classes that were encoded, and whether an object of each was. None: not noted."""
        self._table = _Table(self._adopt)
        self._table.update(
            {
                type(None): _as_it_is,
                bool: _as_it_is,
                str: _text,
                int: _integer,
                float: _float,
                list: self._list,
                dict: self._mapping,
                DescribedError: self._described,
                _Raw: self._raw,
                PrivateAttributes: self._private,
            }
        )
        for kind in VALUE_KINDS:
            self._table[kind.cls] = self._taken_apart(kind.take, kind.name)
        for cls in (set, frozenset):
            self._table[cls] = self._set

    def encode(self, value: object) -> Any:
        """Return a value as JSON values.

        Raises:
            Fault: Something in it cannot be encoded.
        """
        return self._table[type(value)](value, 0)

    def _list(self, value: list[Any], depth: int) -> Any:
        _check_depth(depth)
        if len(kinds := set(map(type, value))) == 1:
            is_plain = _PLAIN_LISTS.get(kinds.pop())
            if is_plain is not None and is_plain(value):
                return value.copy()
        table = self._table
        encoded: list[Any] = []
        try:
            for item in value:
                # One by one: the number of items is the place of a fault.
                encoded.append(table[type(item)](item, depth + 1))  # noqa: PERF401
        except Fault as fault:
            fault.within(value, f"[{len(encoded)}]")
            raise
        return encoded

    def _mapping(self, value: dict[Any, Any], depth: int) -> Any:
        _check_depth(depth)
        table, key = self._table, None
        encoded: dict[str, Any] = {}
        try:
            for key, item in value.items():
                if type(key) is not str or key == TAG or not (key.isascii() or _is_unicode(key)):
                    break
                encoded[key] = table[type(item)](item, depth + 1)
            else:
                return encoded
        except Fault as fault:
            fault.within(value, step_to(key))
            raise
        return self._pairs(value, depth)

    def _pairs(self, value: dict[Any, Any], depth: int) -> Any:
        """Encode a mapping that is not plain JSON, or that could be mistaken for a tag."""
        table, key = self._table, None
        pairs: list[Any] = []
        try:
            for key, item in value.items():
                pairs.append([table[type(key)](key, depth + 1), table[type(item)](item, depth + 1)])
        except Fault as fault:
            fault.within(value, step_to(key))
            raise
        return {TAG: ["dict", pairs]}

    def _set(self, value: set[Any] | frozenset[Any], depth: int) -> Any:
        try:
            items = self._list(list(value), depth)
        except Fault as fault:
            fault.within(value, "")
            raise
        # Equal sets must be equal texts in every process.
        items.sort(key=lambda item: item if type(item) is str else json.dumps(item))
        return {TAG: [type(value).__name__, items]}

    def _taken_apart(self, take: Callable[[Any], tuple[object, ...]], *head: str) -> _Handler:
        """Return a handler that encodes an object as `head` and its parts."""
        table = self._table

        def handle(value: Any, depth: int) -> Any:
            try:
                return {TAG: [*head, *[table[type(part)](part, depth) for part in take(value)]]}
            except Fault as fault:
                fault.within(value, "")
                raise

        return handle

    def _raw(self, raw: _Raw, depth: int) -> Any:
        """Encode as much of a value as possible: itself, or its items, or what JSON can represent."""
        value, levels = raw.value, raw.levels - 1
        try:
            return self._table[type(value)](value, depth)
        except Fault as fault:
            if levels and type(value) is dict:
                return self._mapping({key: _Raw(item, levels) for key, item in value.items()}, depth)
            if levels and type(value) in (list, tuple):
                return self._table[type(value)](type(value)(_Raw(item, levels) for item in value), depth)
            logger.debug(
                "omitted what JSON cannot represent of a raw value: %s",
                fault.as_error(type(value).__name__),
                extra={"action": "reduce_value"},
            )
        plain = reduced(value)
        try:
            return self._table[type(plain)](plain, depth)
        except Fault:  # it is nested too deeply
            return None

    def _private(self, attributes: PrivateAttributes, depth: int) -> Any:
        """Encode private attributes, except those that do not hold data and have a default."""
        kept: dict[str, Any] = {}
        for name, item in attributes.held.items():
            cls = type(item)
            has_default = attributes.has_default.get(name)
            if has_default is None or cls in self._table or not _is_no_data(cls):
                kept[name] = item
            elif has_default:
                logger.debug(
                    "omitted the private attribute %s, which holds a %s",
                    name,
                    qualified_name(cls),
                    extra={"action": "leave_out_attribute"},
                )
            else:
                fault = Fault(_rejection_of_private(cls), cls=cls)
                fault.within(attributes.held, step_to(name))
                raise fault
        return self._mapping(kept, depth)

    def _adopt(self, cls: type) -> _Handler:
        """Return the handler for a class that was not seen before."""
        if issubclass(cls, type):
            return self._class
        if is_scalar(cls):
            return self._taken_apart(take_scalar, "numpy")
        form = form_of(cls)
        if form is None:
            raise Fault(_rejection_of(cls), cls=cls)
        name = self._registry.name_of(cls)
        if not issubclass(cls, BaseException):
            if name is None:
                raise Fault(self._registry.rejection_of(cls), cls=cls)
            take = _marking(_without_secrets(form.take, cls), raw_fields(cls))
            return self._noting(self._taken_apart(take, form.kind, name), name)
        handler = self._error_handler(form if name is not None else None, name or "")
        return handler if name is None else self._noting(handler, name)

    def _noting(self, handler: _Handler, name: str) -> _Handler:
        """Return a handler that notes the name of its class, unless it is a class of a library."""
        if is_of_library(name):
            return handler

        def handle(value: Any, depth: int) -> Any:
            if self.noted is not None:
                self.noted[name] = True
            return handler(value, depth)

        return handle

    def _class(self, value: type, _: int) -> Any:
        name = self._registry.name_of(value) or name_of_class_value(value)
        if name is None:
            raise Fault("is the class itself: " + self._registry.rejection_of(value))
        if self.noted is not None and not is_of_library(name):
            self.noted.setdefault(name, False)
        return {TAG: ["class", name]}

    def _error_handler(self, form: Form | None, name: str) -> _Handler:
        """Return a handler for an exception class: as itself if it is declared, else as a description."""
        itself = self._taken_apart(form.take, form.kind, name) if form is not None else self._builtin_error

        def handle(value: BaseException, depth: int) -> Any:
            try:
                return itself(value, depth)
            except Fault:
                return self._described(value, depth)

        return handle

    def _builtin_error(self, value: BaseException, depth: int) -> Any:
        arguments = builtin_arguments(value)
        if arguments is None:
            raise Fault("is an exception that is encoded as a description")
        return {TAG: ["exception", type(value).__name__, self._list(arguments, depth)]}

    def _described(self, value: BaseException, _: int) -> Any:
        return {TAG: ["described", *map(_text_of, describe(value))]}


@dataclass(frozen=True, slots=True)
class _Raw:
    """Marks the value of a raw field, see `codec.agents`."""

    value: Any
    levels: int = LEVELS
    """How deep containers are searched for what can be encoded."""


def _marking(
    take: Callable[[Any], tuple[object, ...]], raw: frozenset[str]
) -> Callable[[Any], tuple[object, ...]]:
    """Return a `take` that marks the raw fields among the fields, which are the first part."""
    if not raw:
        return take

    def take_marked(value: Any) -> tuple[object, ...]:
        fields, *rest = take(value)
        held: dict[str, object] = expect(dict, fields)
        return {name: _Raw(item) if name in raw else item for name, item in held.items()}, *rest

    return take_marked


def _without_secrets(
    take: Callable[[Any], tuple[object, ...]], cls: type
) -> Callable[[Any], tuple[object, ...]]:
    """Return a `take` that refuses objects which act with secrets that they hold; see `live_objects`."""
    secret = secret_fields(cls)
    if not secret:
        return take

    def take_checked(value: Any) -> tuple[object, ...]:
        for name in secret:
            if is_filled(getattr(value, name, None)):
                raise Fault(f"is a {qualified_name(cls)}, {rejection_of_secret(name)}", cls=cls)
        return take(value)

    return take_checked


class _Table(dict[type, _Handler]):
    """The handlers by class. A missing one is created once."""

    def __init__(self, adopt: Callable[[type], _Handler]) -> None:
        super().__init__()
        self._adopt = adopt

    def __missing__(self, cls: type) -> _Handler:
        handler = self[cls] = self._adopt(cls)
        return handler


def _check_depth(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise Fault(f"is nested more than {MAX_DEPTH} levels deep; nest less")


def _as_it_is(value: Any, _: int) -> Any:
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: str, _: int) -> Any:
    return _text_of(value)


def _text_of(value: str) -> Any:
    return value if value.isascii() or _is_unicode(value) else {TAG: ["str", *take_text(value)]}


def _integer(value: int, _: int) -> Any:
    return value if -_MAX_PLAIN_INTEGER < value < _MAX_PLAIN_INTEGER else {TAG: ["int", *take_integer(value)]}


def _float(value: float, _: int) -> Any:
    return value if isfinite(value) else {TAG: ["float", *take_float(value)]}


_PLAIN_LISTS: Final[dict[type, Callable[[list[Any]], bool]]] = {
    # Embeddings and texts are long lists of one class; one check in C covers all items.
    float: lambda items: all(map(isfinite, items)),
    str: lambda items: all(map(str.isascii, items)),
    int: lambda items: min(items) > -_MAX_PLAIN_INTEGER and max(items) < _MAX_PLAIN_INTEGER,
    bool: lambda _: True,
}


def _is_no_data(cls: type) -> bool:
    """Return whether objects of a class that is not in the table can never be encoded."""
    return not issubclass(cls, type) and (form_of(cls) is None or rejection(cls) is not None)


def _rejection_of_private(cls: type) -> str:
    return (
        f"is {_what(cls)}: give the private attribute a default, for example with "
        "`PrivateAttr(default_factory=...)`, or keep a reference such as a name or an id instead"
    )


def _what(cls: type) -> str:
    what = "which is code or a running operation" if is_code(cls) else "which cannot be stored"
    return f"a {qualified_name(cls)}, {what}"


def _rejection_of(cls: type) -> str:
    if not is_code(cls) and (reason := rejection(cls)) is not None:
        return f"is a {qualified_name(cls)}, {reason}"
    return (
        f"is {_what(cls)}: exclude the field, keep a reference such as a name or an id "
        "instead, or make it a model, a dataclass or an enum that the workflow declares"
    )
