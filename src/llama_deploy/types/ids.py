"""Identifiers."""

from __future__ import annotations

import os
import re
import time
from typing import Final

from llama_deploy.printable import CONTROLS, has_controls

_RANDOM_BYTES: Final = 10
MAX_ID_LENGTH: Final = 255
"""The most characters in the id of a task, a session or an instance."""
ID_PATTERN: Final = rf"^(?!\.{{1,2}}$)[^{CONTROLS}]{{1,{MAX_ID_LENGTH}}}$"
"""What an id is: any text on one line that a path of a URL can name."""

_ID: Final = re.compile(ID_PATTERN)


def check_id(text: str) -> str:
    """Return an id if it can be one.

    Raises:
        ValueError: It is empty, too long, `.` or `..`, or has control characters.
    """
    # Faster than the expression, and true of nearly all ids.
    if text.isprintable() and 0 < len(text) <= MAX_ID_LENGTH and text[0] != ".":
        return text
    if _ID.fullmatch(text) is None or has_controls(text):
        raise ValueError(
            f"{text[:40]!r} cannot be an id: use 1 to {MAX_ID_LENGTH} characters without control characters"
            " and line breaks, and not . or .."
        )
    return text


def generate_id() -> str:
    """Return a new identifier: a UUID version 7 (RFC 9562, section 5.7) in its usual text form.

    Later identifiers sort later, to the millisecond. New rows go to one end of a database index, so the cost
    of an insert does not grow with the table.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 8 * _RANDOM_BYTES | int.from_bytes(os.urandom(_RANDOM_BYTES))
    value = value & ~(0xF << 76) | 7 << 76  # the version
    value = value & ~(0b11 << 62) | 0b10 << 62  # the variant
    digits = f"{value:032x}"  # twice as fast as `uuid.UUID`
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
