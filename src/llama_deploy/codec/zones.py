"""Time zones: which are stored as they are, and what is stored for those of other libraries."""

from __future__ import annotations

import functools
import zoneinfo
from datetime import datetime, time, timedelta, timezone, tzinfo
from typing import Final

from pydantic_core import TzInfo

from llama_deploy.codec.faults import Fault

zone_names: Final = functools.cache(zoneinfo.available_timezones)
"""The names of the time zones that this machine knows."""


def stored_zone(moment: datetime | time) -> tuple[int, tzinfo | None]:
    """Return the fold and the time zone with which a moment is stored.

    Time zones of the standard library and of pydantic are stored as they are. Another one becomes the one of
    the standard library with the same name and the same offset at that moment, or else a fixed offset with
    the name at that moment.

    Raises:
        Fault: It does not have an offset, for example because a time of day does not have a date.
    """
    zone = moment.tzinfo
    if zone is None or type(zone) in (timezone, TzInfo):
        return moment.fold, zone
    if type(zone) is zoneinfo.ZoneInfo and zone.key in zone_names():
        return moment.fold, zone
    try:
        offset, name, key = moment.utcoffset(), moment.tzname(), _name_of(zone)
    except Exception as exc:
        raise Fault(f"has a time zone that fails with {type(exc).__name__}: {exc}") from exc
    if key is not None:
        named = zoneinfo.ZoneInfo(key)
        for fold in (moment.fold, 1 - moment.fold):
            if moment.replace(tzinfo=named, fold=fold).utcoffset() == offset:
                return fold, named
    if offset is None:
        cls = type(zone)
        raise Fault(
            f"has the time zone {cls.__module__}.{cls.__qualname__}, which does not have an offset there: "
            "use one of `zoneinfo` or `datetime.timezone`"
        )
    return 0, _fixed(offset, name)


def _name_of(zone: tzinfo) -> str | None:
    """Return the standard library's name of another library's time zone; pytz has it in `zone`."""
    for attribute in ("key", "zone"):
        name = getattr(zone, attribute, None)
        if isinstance(name, str) and name in zone_names():
            return str(name)
    return None


def _fixed(offset: timedelta, name: str | None) -> timezone:
    return timezone(offset) if name is None else timezone(offset, name)
