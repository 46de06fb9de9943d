"""Numbers, booleans and times of requests. They are read as they are written: nothing is converted into them.

`true` is not a number, `1` is not a boolean, and a number is not a time. FastAPI reads the values of a parsed
body, and shortcuts read JSON: both refuse the same. Numbers and booleans in queries are texts, and have other
types.

A field with a limit of its own is `int = Field(strict=True, ...)`: pydantic would drop a limit beside one of
these types.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

MAX_NUMBER: Final = 2**53
"""The greatest integer. All readers of JSON are exact up to it, and a sum of a few fits a column."""

Flag = Annotated[bool, Field(strict=True)]
"""A boolean."""
Integer = Annotated[int, Field(strict=True, ge=-MAX_NUMBER, le=MAX_NUMBER)]
"""An integer."""
Count = Annotated[int, Field(strict=True, ge=0, le=MAX_NUMBER)]
"""An integer that is not negative: a number of things, or the number of one."""
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
"""A time in seconds. 0: at once, or none."""

_RFC_3339: Final = r"^\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})$"
# Texts with an offset can name times beyond, which have no form in UTC.
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)
_EXPECTED: Final = (
    "Input should be a date and a time with its offset from UTC (RFC 3339), such as 2026-01-02T03:04:05Z"
)


class _Rfc3339:
    """Makes a `datetime` take an aware `datetime`, or its text. All of it runs in the core of pydantic."""

    @staticmethod
    def __get_pydantic_core_schema__(_source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        time = core_schema.datetime_schema(tz_constraint="aware", ge=_EARLIEST, le=_LATEST)
        text = core_schema.chain_schema([core_schema.str_schema(pattern=_RFC_3339, strict=True), time])
        either = core_schema.union_schema([{**time, "strict": True}, text], mode="left_to_right")
        return core_schema.custom_error_schema(
            core_schema.json_or_python_schema(json_schema=text, python_schema=either),
            custom_error_type="rfc_3339",
            custom_error_message=_EXPECTED,
        )

    @staticmethod
    def __get_pydantic_json_schema__(_schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "format": "date-time"}


Timestamp = Annotated[datetime, _Rfc3339()]
"""An aware point in time; as text a date and a time with an offset (RFC 3339, section 5.6)."""
