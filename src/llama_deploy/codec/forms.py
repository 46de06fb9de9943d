"""How the objects of one class are split into parts and rebuilt, by kind of class.

Nothing is validated and no `__init__` runs: you get back what was stored. A field that is missing in the data
gets its default, from its factory if it has one. A field that the class does not have is an error, because
its data would be lost. `codec.decoding` lists the code of a class that does run.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from enum import Enum, Flag
from typing import Any, Final, Protocol

from pydantic import BaseModel
from pydantic.fields import FieldInfo, ModelPrivateAttr
from pydantic_core import PydanticUndefined

from llama_deploy.codec.annotations import is_model
from llama_deploy.codec.exceptions import arguments_of, describe
from llama_deploy.codec.faults import Fault
from llama_deploy.codec.values import expect

_NOTHING: Final = object()
_LIBRARY: Final = "workflows"
"""The package whose models keep user data in private attributes."""


@dataclasses.dataclass(frozen=True, slots=True)
class PrivateAttributes:
    """The private attributes of a model; some may be omitted."""

    held: dict[str, Any]
    """Their values."""
    has_default: dict[str, bool]
    """Those that a user's class declares, and whether each has a default to be restored from."""


class Form(Protocol):
    """Splits objects of one class into parts, and rebuilds them."""

    kind: str
    """The kind in the encoded form."""

    def take(self, value: Any) -> tuple[object, ...]:
        """Return the parts of an object, without empty ones at the end.

        Raises:
            Fault: It could not be rebuilt.
        """

    def build(self, *parts: Any) -> object:
        """Build an object from its parts.

        Raises:
            Fault: The parts do not match the class.
            Exception: What the code of the class raises, such as the factory of a default.
        """


def form_of(cls: type) -> Form | None:
    """Return the form of a class's objects. None: their state is not in fields."""
    if issubclass(cls, Enum):
        return EnumForm(cls)
    if issubclass(cls, BaseException):
        return ErrorForm(cls)
    if is_model(cls):
        return ModelForm(cls)
    if dataclasses.is_dataclass(cls):
        return DataclassForm(cls)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return NamedTupleForm(cls)
    return None


class ModelForm:
    """Pydantic models: fields, extras, private attributes, and which fields were set.

    Private attributes of a user's class become `PrivateAttributes`, of which the encoder may omit some.

    Parts: the fields; the names of those not set; private attributes; extras; attributes without a
    declaration.
    """

    kind = "model"

    def __init__(self, cls: type[BaseModel]) -> None:
        cls.model_rebuild(raise_errors=False)
        self._cls = cls
        self._flaw = _flaw_of(functools.partial(cls.__new__, cls))
        self._fields: dict[str, FieldInfo] = dict(cls.model_fields)
        self._names = frozenset(name for name, field in self._fields.items() if not field.exclude)
        self._lost = [name for name in self._fields.keys() - self._names if self._fields[name].is_required()]
        self._takes_extra = cls.model_config.get("extra") == "allow"
        self._is_root = cls.__pydantic_root_model__
        self._containers = {
            name: attribute.default_factory
            for name, attribute in cls.__private_attributes__.items()
            if attribute.default_factory in (dict, list, set)
        }
        kept = {name for base in cls.__mro__ if _is_of_library(base) for name in _private_of(base)}
        self._own_private = {
            name: attribute.default_factory is not None or attribute.default is not PydanticUndefined
            for name, attribute in cls.__private_attributes__.items()
            if name not in kept
        }

    def take(self, value: BaseModel) -> tuple[object, ...]:
        """Return the parts of a model."""
        if self._flaw:
            raise Fault(self._flaw)
        fields: dict[str, Any] = value.__dict__
        others: dict[str, Any] = {}
        if fields.keys() != self._names:
            fields, others = self._split(value)
        set_names = value.__pydantic_fields_set__
        extra = value.__pydantic_extra__
        unset = [name for name in (*fields, *(extra or ())) if name not in set_names]
        private = value.__pydantic_private__
        if private and self._containers:
            # Each event of the library has one, which is nearly always empty.
            containers = self._containers
            private = {
                name: item for name, item in private.items() if type(item) is not containers.get(name) or item
            }
        if not (private or extra or others):
            return (fields, unset) if unset else (fields,)
        return _trimmed(fields, unset, self._taken_private(private or {}), extra or {}, others)

    def _taken_private(self, private: dict[str, Any]) -> dict[str, Any] | PrivateAttributes:
        if private.keys().isdisjoint(self._own_private):
            return private
        return PrivateAttributes(private, self._own_private)

    def _split(self, value: BaseModel) -> tuple[dict[str, Any], dict[str, Any]]:
        attributes = vars(value)
        fields = {name: item for name, item in attributes.items() if name in self._names}
        gone = [name for name in self._names - fields.keys() if self._fields[name].is_required()]
        if gone:
            raise Fault(f"has no value for {_list(gone)}, and there is no default: give it one")
        if self._lost:
            raise Fault(
                f"excludes {_list(self._lost)} (`exclude=True`), and there is no default: give it one"
            )
        return fields, _others(self._cls, attributes, self._fields)

    def build(
        self, fields: Any, unset: Any = (), private: Any = None, extra: Any = None, others: Any = None
    ) -> BaseModel:
        """Build a model."""
        cls = self._cls
        _check_names(cls, fields, self._fields)
        set_names = {*fields, *(extra or ())}
        set_names.difference_update(unset)
        if len(fields) != len(self._fields):
            fields = self._completed(fields)
        model = cls.__new__(cls)
        if others:
            fields = fields | _checked_others(cls, expect(dict, others), self._fields)
        object.__setattr__(model, "__dict__", fields)
        object.__setattr__(model, "__pydantic_fields_set__", set_names)
        if self._is_root:
            if extra or private:
                raise Fault(f"holds more than a {cls.__name__} can have")
            return model
        if extra and not self._takes_extra:
            raise Fault(f"holds {_list(extra)}, but {cls.__name__} does not take extra fields")
        object.__setattr__(model, "__pydantic_extra__", dict(extra or {}) if self._takes_extra else None)
        object.__setattr__(model, "__pydantic_private__", self._private(private or {}, fields))
        return model

    def _completed(self, fields: dict[str, Any]) -> dict[str, Any]:
        complete: dict[str, Any] = {}
        for name, field in self._fields.items():
            if name in fields:
                complete[name] = fields[name]
            elif field.is_required():
                raise Fault(f"does not hold {name!r}, which {self._cls.__name__} requires")
            else:
                complete[name] = field.get_default(call_default_factory=True, validated_data=complete)
        return complete

    def _private(self, held: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any] | None:
        declared = self._cls.__private_attributes__
        if held.keys() == declared.keys():
            return held if declared else None
        _check_names(self._cls, held, declared)
        complete = dict(held)
        for name, attribute in declared.items():
            # An attribute without a default stays absent, as in a new model.
            if (
                name not in held
                and (default := _default_of(attribute, fields | complete)) is not PydanticUndefined
            ):
                complete[name] = default
        return complete


class DataclassForm:
    """Dataclasses, also frozen and slotted ones. Parts: the fields; undeclared attributes."""

    kind = "dataclass"

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self._flaw = _flaw_of(functools.partial(object.__new__, cls))
        self._fields = {field.name: field for field in dataclasses.fields(cls)}

    def take(self, value: Any) -> tuple[object, ...]:
        """Return the parts of a dataclass."""
        if self._flaw:
            raise Fault(self._flaw)
        fields: dict[str, Any] = {}
        for name, field in self._fields.items():
            item = getattr(value, name, _NOTHING)
            if item is not _NOTHING:
                fields[name] = item
            elif not _may_be_absent(field):
                raise Fault(f"has no value for {name!r}, and there is no default: give it one")
        attributes = getattr(value, "__dict__", fields)
        if attributes.keys() <= fields.keys():
            return (fields,)
        return _trimmed(fields, _others(self._cls, attributes, self._fields))

    def build(self, fields: Any, others: Any = None) -> object:
        """Build a dataclass; neither `__init__` nor `__post_init__` runs."""
        cls = self._cls
        _check_names(cls, fields, self._fields)
        built: object = object.__new__(cls)
        for name, field in self._fields.items():
            if name in fields:
                object.__setattr__(built, name, fields[name])
            elif field.default is not dataclasses.MISSING:
                object.__setattr__(built, name, field.default)
            elif field.default_factory is not dataclasses.MISSING:
                object.__setattr__(built, name, field.default_factory())
            elif not _may_be_absent(field):
                raise Fault(f"does not hold {name!r}, which {cls.__name__} requires")
        for name, item in _checked_others(cls, expect(dict, others or {}), self._fields).items():
            object.__setattr__(built, name, item)
        return built


class NamedTupleForm:
    """Named tuples. Part: the fields."""

    kind = "namedtuple"

    def __init__(self, cls: Any) -> None:
        self._cls = cls
        self._names: tuple[str, ...] = cls._fields
        self._defaults: dict[str, Any] = getattr(cls, "_field_defaults", {})

    def take(self, value: Any) -> tuple[object, ...]:
        """Return the part of a named tuple."""
        return (dict(zip(self._names, value, strict=True)),)

    def build(self, fields: Any) -> object:
        """Build a named tuple."""
        _check_names(self._cls, fields, self._names)
        missing = [name for name in self._names if name not in fields and name not in self._defaults]
        if missing:
            raise Fault(f"does not hold {_list(missing)}, which {self._cls.__name__} requires")
        complete = self._defaults | fields
        return tuple.__new__(self._cls, [complete[name] for name in self._names])


class EnumForm:
    """Enumerations. Part: the member's name; the number of a combination of flags."""

    kind = "enum"

    def __init__(self, cls: type[Enum]) -> None:
        self._cls = cls

    def take(self, value: Any) -> tuple[object, ...]:
        """Return the part of a member."""
        return (value._value_ if isinstance(value, Flag) else value._name_,)

    def build(self, part: Any) -> object:
        """Find a member."""
        if issubclass(self._cls, Flag):
            return self._cls(expect(int, part))
        member = self._cls.__members__.get(expect(str, part))
        if member is None:
            raise Fault(f"names {part!r}, which {self._cls.__name__} does not have")
        return member


class ErrorForm:
    """Declared exceptions. Parts: the arguments; the attributes. Cause, context and traceback are omitted."""

    kind = "error"

    def __init__(self, cls: type[BaseException]) -> None:
        self._cls = cls

    def take(self, value: BaseException) -> tuple[object, ...]:
        """Return the parts of an exception.

        Raises:
            Fault: An exception with the same text cannot be rebuilt from them, for example because its class
                needs more than the arguments.
        """
        try:
            parts = _trimmed(arguments_of(value), vars(value))
            built = self.build(*parts)
            same = type(built) is type(value) and describe(built) == describe(value)
        except Exception as exc:
            raise Fault(f"is an exception that cannot be rebuilt: {type(exc).__name__}: {exc}") from exc
        if not same:
            raise Fault("is an exception that would be different when rebuilt")
        return parts

    def build(self, arguments: Any, attributes: Any = None) -> BaseException:
        """Build an exception; `__new__` runs with the arguments, `__init__` does not."""
        error = self._cls.__new__(self._cls, *expect(list, arguments))
        for name in expect(dict, attributes or {}):
            if not isinstance(name, str) or (_is_special(name) and name != "__notes__"):
                raise Fault(f"holds {name!r}, which cannot be an attribute of an exception")
        vars(error).update(attributes or {})
        return error


def _trimmed(*parts: Any) -> tuple[object, ...]:
    """Return the parts without empty ones at the end. The first part stays."""
    count = len(parts)
    while count > 1 and not parts[count - 1]:
        count -= 1
    return parts[:count]


def _flaw_of(make: Callable[[], object]) -> str | None:
    """Return why an empty object of a class cannot be created. None: it can."""
    try:
        make()
    except Exception as exc:  # noqa: BLE001 - the code of any class
        return (
            f"cannot be rebuilt, because its class cannot create an object without its constructor ({exc}): "
            "exclude the field, or keep the constructor's arguments instead"
        )
    return None


def _is_of_library(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == _LIBRARY


def _private_of(cls: type) -> Iterable[str]:
    return cls.__private_attributes__ if is_model(cls) else ()


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names, key=str)))


def _default_of(attribute: ModelPrivateAttr, fields: dict[str, Any]) -> Any:
    """Return the default of a private attribute; pydantic's own method differs between versions."""
    factory: Any = attribute.default_factory
    if factory is None:
        return copy.deepcopy(attribute.default)
    return factory(fields) if getattr(attribute, "default_factory_takes_validated_data", False) else factory()


def _may_be_absent(field: dataclasses.Field[Any]) -> bool:
    """Return whether an object can be built without this field, with its default or by `__init__`."""
    has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    return has_default or not field.init


def _check_names(cls: type, held: object, known: Iterable[str]) -> None:
    unknown = expect(dict, held).keys() - (known.keys() if isinstance(known, dict) else set(known))
    if unknown:
        raise Fault(f"holds {_list(unknown)}, which {cls.__name__} does not have any more")


def _others(cls: type, attributes: dict[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Return the undeclared attributes of an object; a `__post_init__` may set such ones.

    The value of a `cached_property` is omitted, because it is computed again.
    """
    found = {
        name: item
        for name, item in attributes.items()
        if name not in fields
        and not isinstance(inspect.getattr_static(cls, name, None), functools.cached_property)
    }
    return _checked_others(cls, found, fields)


def _checked_others(cls: type, others: dict[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    for name in others:
        if (
            not isinstance(name, str)
            or _is_special(name)
            or name in fields
            or hasattr(inspect.getattr_static(cls, name, None), "__get__")
        ):
            raise Fault(f"holds an attribute {name!r}, which cannot be set on a {cls.__name__}")
    return others


def _is_special(name: str) -> bool:
    return name.startswith("__")
