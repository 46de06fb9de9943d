"""What cannot come back as itself, and what comes back for it."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from typing import Any, Self
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, PrivateAttr, ValidationError
from workflows.events import Event, StopEvent

from llama_deploy.codec import DescribedError, TypedJson, TypeRegistry
from llama_deploy.errors import SerializationError

# Exceptions.


class NeedyError(Exception):
    """Is made of more than its arguments tell."""

    def __new__(cls, code: int, reason: str) -> Self:  # noqa: ARG004 - so it is at home
        return super().__new__(cls)

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class LossyError(UnicodeDecodeError):
    """Its text is made of what only its constructor keeps."""


class FileError(OSError):
    pass


class PlainError(Exception):
    pass


class PlainGroup(ExceptionGroup[Exception]):
    pass


class Number(BaseModel):
    x: int


ERRORS = TypedJson(
    TypeRegistry(
        [ValidationError, json.JSONDecodeError, NeedyError, LossyError, FileError, PlainError, PlainGroup]
    )
)


def invalid() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Number.model_validate({"x": "bad"})
    return caught.value


@pytest.mark.parametrize(
    "error",
    [invalid(), NeedyError(1, "no"), LossyError("utf-8", b"\xff", 0, 1, "invalid")],
    ids=lambda error: type(error).__name__,
)
def test_a_declared_exception_that_cannot_be_built_is_described(error: Exception) -> None:
    for carried in (error, ExceptionGroup("several", [error]), PlainGroup("several", [error])):
        back = ERRORS.loads(ERRORS.dumps(carried))
        assert str(back) == str(carried)
        described = back.exceptions[0] if isinstance(back, ExceptionGroup) else back
        assert type(described) is DescribedError
        assert described.type_name.endswith(f".{type(error).__name__}")
        assert str(described) == str(error)


@pytest.mark.parametrize(
    "error",
    [
        PlainError("x", 1),
        FileError(2, "no such file", "a.txt"),
        json.JSONDecodeError("odd", "[", 1),
        PlainGroup("several", [PlainError("x"), ValueError("y")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_declared_exception_that_can_be_built_stays_itself(error: Exception) -> None:
    back = ERRORS.loads(ERRORS.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


# Time zones.


class Foreign(tzinfo):
    """A zone of another library: what some packages hold in `key`, and pytz in `zone`, is its name."""

    def __init__(self, base: tzinfo, **names: object) -> None:
        self._base = base
        vars(self).update(names)

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return self._base.utcoffset(moment.replace(tzinfo=self._base) if moment else None)

    def dst(self, moment: datetime | None) -> timedelta | None:
        return self._base.dst(moment.replace(tzinfo=self._base) if moment else None)

    def tzname(self, moment: datetime | None) -> str | None:
        return self._base.tzname(moment.replace(tzinfo=self._base) if moment else None)


class Summer(Foreign):
    """As pytz does it: the zone itself knows whether it is summer."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return timedelta(hours=2) if moment else None


ZONES = TypedJson(TypeRegistry([]))
BERLIN = ZoneInfo("Europe/Berlin")
ONE = timedelta(hours=1)


def through(value: Any) -> Any:
    return ZONES.loads(ZONES.dumps(value))


@pytest.mark.parametrize("names", [{"key": "Europe/Berlin"}, {"zone": "Europe/Berlin"}])
def test_a_zone_with_a_name_that_is_known_becomes_that_zone(names: dict[str, object]) -> None:
    moment = datetime(2026, 7, 1, 12, tzinfo=Foreign(BERLIN, **names))
    back = through(moment)
    assert back.tzinfo is BERLIN
    assert back.isoformat() == moment.isoformat()
    assert through(time(12, tzinfo=Foreign(BERLIN, **names))) == time(12, tzinfo=BERLIN)


def test_the_hour_that_comes_twice_stays_the_same_moment() -> None:
    twice = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=Summer(BERLIN, zone="Europe/Berlin"))
    back = through(twice)
    assert (back.tzinfo, back.fold) == (BERLIN, 0)
    assert back.utcoffset() == 2 * ONE


@pytest.mark.parametrize(
    ("zone", "name"),
    [
        (Foreign(timezone(ONE, "here")), "here"),
        (Foreign(timezone(ONE, "here"), key="No/Where"), "here"),
        (Foreign(timezone(ONE, "here"), zone="Asia/Tokyo"), "here"),
        (Foreign(timezone(ONE)), "UTC+01:00"),
        (Foreign(BERLIN), "CET"),
    ],
)
def test_another_zone_becomes_the_offset_of_that_moment(zone: tzinfo, name: str) -> None:
    moment = datetime(2026, 1, 1, 12, tzinfo=zone)
    back = through(moment)
    assert type(back.tzinfo) is timezone
    assert (back.utcoffset(), back.tzname(), back.replace(tzinfo=None)) == (
        ONE,
        name,
        moment.replace(tzinfo=None),
    )


def test_a_zone_from_a_file_becomes_an_offset() -> None:
    class NoKey(ZoneInfo):
        key = None  # type: ignore[assignment] # as `ZoneInfo.from_file` leaves it

    back = through(datetime(2026, 1, 1, tzinfo=NoKey("Europe/Berlin")))
    assert (type(back.tzinfo), back.utcoffset(), back.tzname()) == (timezone, ONE, "CET")


def test_the_zones_of_dateutil() -> None:
    tz: Any = pytest.importorskip("dateutil.tz")
    for zone in (tz.tzutc(), tz.gettz("Europe/Berlin"), tz.tzlocal(), tz.tzoffset("own", 3600)):
        moment = datetime(2026, 7, 1, 12, tzinfo=zone)
        back = through(moment)
        assert back == moment
        assert back.utcoffset() == moment.utcoffset()
        assert back.tzname() == moment.tzname()
    assert through(datetime(2026, 1, 1, tzinfo=tz.tzutc())).tzinfo == UTC


@given(
    st.datetimes(timezones=st.timezone_keys(allow_prefix=False).map(ZoneInfo)), st.sampled_from(["key", None])
)
def test_whatever_the_zone_the_moment_stays(moment: datetime, attribute: str | None) -> None:
    zone = moment.tzinfo
    assert isinstance(zone, ZoneInfo)
    foreign = moment.replace(tzinfo=Foreign(zone, **({attribute: zone.key} if attribute else {})))
    back = through(foreign)
    assert back.replace(tzinfo=None, fold=0) == moment.replace(tzinfo=None, fold=0)
    assert back.utcoffset() == moment.utcoffset()


def test_a_time_of_day_in_a_zone_without_a_name_is_refused() -> None:
    with pytest.raises(SerializationError, match=r"^\$\.at has the time zone .*Foreign.*zoneinfo"):
        ZONES.dumps({"at": time(12, tzinfo=Foreign(BERLIN))})


# Private attributes.


class Handle(Event):
    n: int = 0
    _lock: Any = PrivateAttr(default_factory=threading.Lock)
    _client: Any = PrivateAttr(default=None)
    _held: Any = PrivateAttr(default_factory=list)


class Bare(BaseModel):
    _lock: Any = PrivateAttr()


class Stranger(BaseModel):
    """Declared by nobody."""


HANDLES = TypedJson(TypeRegistry([Handle, Bare, StopEvent]))


def test_a_private_attribute_that_cannot_be_carried_is_made_anew() -> None:
    event = Handle(n=2, more="dynamic")
    event._client = logging.getLogger()
    event._held = [1, (2,)]
    back = HANDLES.loads(HANDLES.dumps(event))
    assert type(back._lock) is type(event._lock)
    assert back._lock is not event._lock
    assert back._client is None
    assert back._held == [1, (2,)]
    assert (back.n, back.more) == (2, "dynamic")


def test_one_without_a_default_is_refused_with_what_to_do() -> None:
    bare = Bare()
    bare._lock = threading.Lock()
    with pytest.raises(
        SerializationError, match=r"^\$\._lock is a _thread\.lock.*PrivateAttr\(default"
    ) as no:
        HANDLES.dumps(bare)
    assert "exclude" not in str(no.value)


@pytest.mark.parametrize("held", [[threading.Lock()], Stranger(), Stranger])
def test_no_data_is_left_out_with_it(held: object) -> None:
    event = Handle()
    event._held = held
    with pytest.raises(SerializationError, match=r"^\$\._held"):
        HANDLES.dumps(event)


def test_no_data_of_the_librarys_own_is_left_out() -> None:
    with pytest.raises(SerializationError, match=r"^\$\.more is a _thread\.lock"):
        HANDLES.dumps(Handle(more=threading.Lock()))
    with pytest.raises(SerializationError, match=r"^\$\._result is a _thread\.lock"):
        HANDLES.dumps(StopEvent(result=threading.Lock()))


# Objects that only their constructor makes.


@dataclass
class Tags(list[str]):
    """Most of it stands in no field."""

    owner: str = "nobody"


class Fussy(BaseModel):
    x: int = 0

    def __new__(cls, x: int) -> Self:  # noqa: ARG004 - so it is at home
        return super().__new__(cls)


@pytest.mark.parametrize("value", [Tags("me"), Fussy(x=1)], ids=lambda value: type(value).__name__)
def test_what_could_not_be_built_again_is_refused_when_it_is_written(value: object) -> None:
    typed = TypedJson(TypeRegistry([Tags, Fussy]))
    with pytest.raises(SerializationError, match=r"^\$\.held\[0\] cannot be rebuilt"):
        typed.dumps({"held": [value]})
