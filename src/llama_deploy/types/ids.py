"""Identifiers."""

from __future__ import annotations

import os
import time
import uuid
from typing import Final

_RANDOM_BYTES: Final = 10


def generate_id() -> str:
    """Return a new identifier: a UUID version 7 (RFC 9562, section 5.7) in its usual text form.

    Later identifiers sort later, to the millisecond. New rows go to one end of a database index, so the cost
    of an insert does not grow with the table.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = int.from_bytes(milliseconds.to_bytes(6) + os.urandom(_RANDOM_BYTES))
    value = value & ~(0xF << 76) | 7 << 76  # the version
    value = value & ~(0b11 << 62) | 0b10 << 62  # the variant
    return str(uuid.UUID(int=value))
