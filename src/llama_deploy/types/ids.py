"""Identifiers."""

from __future__ import annotations

import os
import time
import uuid
from typing import Final

_RANDOM_BYTES: Final = 10


def generate_id() -> str:
    """Return a new identifier: a UUID version 7 (RFC 9562, section 5.7) in its usual text form.

    Identifiers that are made later sort later, to the millisecond. So new rows go to one end of a
    database index, and storing them costs the same however many there are.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = int.from_bytes(milliseconds.to_bytes(6) + os.urandom(_RANDOM_BYTES))
    value = value & ~(0xF << 76) | 7 << 76  # the version
    value = value & ~(0b11 << 62) | 0b10 << 62  # the variant
    return str(uuid.UUID(int=value))
