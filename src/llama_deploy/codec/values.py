"""The values of the standard library that the codec supports, each kind with its encoder and decoder."""

from __future__ import annotations

import base64
import pathlib
import uuid
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final, TypeVar

import pydantic.networks
from pydantic_core import TzInfo

from llama_deploy.codec.exceptions import DescribedError, build_builtin
from llama_deploy.codec.faults import Fault
from llama_deploy.codec.zones import stored_zone, zone_names

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ValueKind:
    """How the values of one class are encoded and decoded."""

    name: str
    """The kind in the encoded form."""
    cls: type
    """The exact class; subclasses do not count."""
    take: Callable[[Any], tuple[object, ...]]
    """Returns the parts from which a value is built, as values that the codec supports."""
    build: Callable[..., object]
    """Builds the value from its parts; raises `Fault`, TypeError, ValueError or ArithmeticError."""


def expect(cls: type[T], part: object) -> T:
    """Return `part` if it is exactly of that class.

    Raises:
        Fault: It is not.
    """
    if type(part) is not cls:
        raise Fault(f"holds a {type(part).__name__} where a {cls.__name__} belongs")
    return part


def _from_base64(text: object) -> bytes:
    return base64.b64decode(expect(str, text), validate=True)


def _to_base64(value: bytes | bytearray) -> tuple[object, ...]:
    return (base64.b64encode(value).decode(),)


def take_text(value: str) -> tuple[object, ...]:
    """Return the parts of a string with lone surrogates, which is not valid UTF-8."""
    return _to_base64(value.encode("utf-8", "surrogatepass"))


def _build_text(text: object) -> str:
    return _from_base64(text).decode("utf-8", "surrogatepass")


def take_float(value: float) -> tuple[object, ...]:
    """Return the parts of a number that is not finite."""
    return (str(value),)


def _build_float(text: object) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise Fault("does not hold a number of this kind")
    return float(expect(str, text))


def take_integer(value: int) -> tuple[object, ...]:
    """Return the parts of an integer that is too long for JSON parsers."""
    return (hex(value),)


def _build_integer(text: object) -> int:
    return int(expect(str, text), 16)


def _take_moment(value: datetime | time) -> tuple[object, ...]:
    plain = value.replace(tzinfo=None, fold=0).isoformat()
    fold, zone = stored_zone(value)
    if zone is None:
        return (plain, fold) if fold else (plain,)
    return plain, fold, zone


def _zone_of(zone: object) -> tzinfo | None:
    if zone is not None and not isinstance(zone, tzinfo):
        raise Fault(f"holds a {type(zone).__name__} as time zone")
    return zone


def _build_datetime(text: object, fold: object = 0, zone: object = None) -> datetime:
    moment = datetime.fromisoformat(expect(str, text))
    return moment.replace(tzinfo=_zone_of(zone), fold=expect(int, fold))


def _build_time(text: object, fold: object = 0, zone: object = None) -> time:
    moment = time.fromisoformat(expect(str, text))
    return moment.replace(tzinfo=_zone_of(zone), fold=expect(int, fold))


def _take_timezone(value: timezone) -> tuple[object, ...]:
    offset = value.utcoffset(None)
    name = value.tzname(None)
    return (offset,) if name == timezone(offset).tzname(None) else (offset, name)


def _build_timezone(offset: object, name: object = None) -> timezone:
    if name is None:
        return timezone(expect(timedelta, offset))
    return timezone(expect(timedelta, offset), expect(str, name))


def _take_utc_offset(value: TzInfo) -> tuple[object, ...]:
    offset = value.utcoffset(None)
    return (0.0 if offset is None else offset.total_seconds(),)


def _build_utc_offset(seconds: object) -> TzInfo:
    return TzInfo(expect(float, seconds))


def _take_zone(value: zoneinfo.ZoneInfo) -> tuple[object, ...]:
    if value.key not in zone_names():
        raise Fault(f"is the time zone {value.key!r}, which is not among `zoneinfo.available_timezones()`")
    return (value.key,)


def _build_zone(key: object) -> zoneinfo.ZoneInfo:
    # `ZoneInfo` imports a data package to look up an unknown name, so only known names may reach it.
    if expect(str, key) not in zone_names():
        raise Fault(f"names the time zone {key!r}, which this machine does not know")
    return zoneinfo.ZoneInfo(expect(str, key))


def _take_timedelta(value: timedelta) -> tuple[object, ...]:
    return value.days, value.seconds, value.microseconds


def _build_timedelta(days: object, seconds: object, microseconds: object) -> timedelta:
    return timedelta(expect(int, days), expect(int, seconds), expect(int, microseconds))


def _build_mapping(items: object) -> dict[Any, Any]:
    pairs = [expect(list, pair) for pair in expect(list, items)]
    built = {key: value for key, value in pairs}  # noqa: C416 - `dict` takes more than lists for pairs
    if len(built) != len(pairs):
        raise Fault("holds a key twice")
    return built


def _build_error(name: object, arguments: object) -> BaseException:
    return build_builtin(expect(str, name), expect(list, arguments))


def _build_described(type_name: object, message: object) -> DescribedError:
    return DescribedError(expect(str, type_name), expect(str, message))


def _text(value: object) -> tuple[object, ...]:
    return (str(value),)


def _items(value: Any) -> tuple[object, ...]:
    return (list(value),)


def _named_by_class(cls: type) -> ValueKind:
    """Return the kind of a class that is built from its text."""
    return ValueKind(cls.__name__, cls, _text, lambda text: cls(expect(str, text)))


def _url_classes() -> list[type]:
    found = [value for value in vars(pydantic.networks).values() if isinstance(value, type)]
    return [
        cls for cls in found if cls.__name__.endswith(("Url", "Dsn")) and not cls.__name__.startswith("_")
    ]


VALUE_KINDS: Final[tuple[ValueKind, ...]] = (
    ValueKind("tuple", tuple, _items, lambda items: tuple(expect(list, items))),
    ValueKind("set", set, _items, lambda items: set(expect(list, items))),
    ValueKind("frozenset", frozenset, _items, lambda items: frozenset(expect(list, items))),
    ValueKind("bytes", bytes, _to_base64, _from_base64),
    ValueKind("bytearray", bytearray, _to_base64, lambda text: bytearray(_from_base64(text))),
    ValueKind("datetime", datetime, _take_moment, _build_datetime),
    ValueKind("time", time, _take_moment, _build_time),
    ValueKind(
        "date", date, lambda day: (day.isoformat(),), lambda text: date.fromisoformat(expect(str, text))
    ),
    ValueKind("timedelta", timedelta, _take_timedelta, _build_timedelta),
    ValueKind("timezone", timezone, _take_timezone, _build_timezone),
    ValueKind("utc-offset", TzInfo, _take_utc_offset, _build_utc_offset),
    ValueKind("zone", zoneinfo.ZoneInfo, _take_zone, _build_zone),
    ValueKind("uuid", uuid.UUID, _text, lambda text: uuid.UUID(expect(str, text))),
    ValueKind("decimal", Decimal, _text, lambda text: Decimal(expect(str, text))),
    _named_by_class(pathlib.PosixPath),
    _named_by_class(pathlib.WindowsPath),
    _named_by_class(pathlib.PurePosixPath),
    _named_by_class(pathlib.PureWindowsPath),
    *map(_named_by_class, _url_classes()),
)
"""The kinds that are chosen by the class of a value."""

SPECIAL_KINDS: Final[dict[str, Callable[..., object]]] = {
    "str": _build_text,
    "float": _build_float,
    "int": _build_integer,
    "dict": _build_mapping,
    "exception": _build_error,
    "described": _build_described,
}
"""The kinds that the encoder writes for what is neither plain JSON nor of a known class."""
