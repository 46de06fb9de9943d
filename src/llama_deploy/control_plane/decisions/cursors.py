"""Cursors of pages: where the next page of a list begins, as text that fits a URL. No I/O.

A cursor belongs to one list: it has a digest of the filter and the order that the list was read with, and is
refused with any other. Clients do not look into it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, TypeAlias

from llama_deploy.errors import InvalidCursorError
from llama_deploy.types.epoch import from_microseconds
from llama_deploy.types.keys import SEPARATOR

Position: TypeAlias = Sequence[int | str]
"""The key of the last row of a page, in the order of the list."""

MAX_CURSOR_LENGTH: Final = 2000
"""How many characters a cursor may have. The id of a row takes at most half of them."""
_FORMAT: Final = 1
_DIGEST_BYTES: Final = 9
_SHOWN: Final = 40
"""How many characters of a malformed cursor an error shows."""
_MAX_INTEGER: Final = 2**63 - 1


def encode_cursor(position: Position, *, of: Mapping[str, object]) -> str:
    """Return the cursor of the page that follows a row.

    Args:
        position: The key of the row.
        of: The list: its name, filter and order, as JSON values. Their order does not matter.
    """
    text = json.dumps([_FORMAT, _digest(of), *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(
    cursor: str, *, of: Mapping[str, object], kinds: Sequence[type[int | str]]
) -> tuple[int | str, ...]:
    """Return the position in a cursor.

    Args:
        cursor: As `encode_cursor` returned it.
        of: The list that is read with it.
        kinds: The types of the values of a position.

    Raises:
        InvalidCursorError: It is not a cursor, or that of a list with another filter or order.
    """
    match _values(cursor):
        case [format_, digest, *position] if format_ == _FORMAT:
            pass
        case _:
            raise _malformed(cursor)
    if digest != _digest(of):
        raise InvalidCursorError(
            "the cursor belongs to a list with another filter or order; send the parameters with which you"
            " read the page before, or leave out `cursor` to read from the beginning"
        )
    if len(position) != len(kinds) or not all(map(_is_value, position, kinds)):
        raise _malformed(cursor)
    return tuple(position)


def time_in_cursor(microseconds: int | str) -> datetime:
    """Return the time that a position has as `types.epoch.to_microseconds`.

    Raises:
        InvalidCursorError: It is none.
    """
    try:
        return from_microseconds(int(microseconds))
    except (OverflowError, ValueError) as exc:
        raise InvalidCursorError(
            "the cursor names no time; leave out `cursor` to read from the beginning"
        ) from exc


def _values(cursor: str) -> list[int | str]:
    if len(cursor) > MAX_CURSOR_LENGTH:
        raise _malformed(cursor)
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        values = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as exc:
        raise _malformed(cursor) from exc
    return values if isinstance(values, list) else []


def _is_value(value: object, kind: type[int | str]) -> bool:
    if type(value) is not kind:
        return False
    if isinstance(value, int):
        return abs(value) <= _MAX_INTEGER
    if not isinstance(value, str) or SEPARATOR in value:  # it is an id, or another text without it
        return False
    # Not every database stores these.
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def _digest(of: Mapping[str, object]) -> str:
    text = json.dumps(of, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).digest()[:_DIGEST_BYTES]
    return base64.urlsafe_b64encode(digest).decode()


def _malformed(cursor: str) -> InvalidCursorError:
    shown = cursor if len(cursor) <= _SHOWN else f"{cursor[:_SHOWN]}..."
    return InvalidCursorError(
        f"{shown!r} is not a cursor; send `next_cursor` of the page before, or leave out `cursor` to read"
        " from the beginning"
    )
