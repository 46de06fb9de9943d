"""Values of rows that may be large, and are read only if they are needed.

A transaction for many requests, or a sweep over many tasks, reads their rows without them. What is small is
read with its row: it costs less than another statement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, overload

DEFERRED_BYTES: Final = 16 * 1024
"""Larger values are deferred where rows are read lean."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """Stands for a value that was not read with its row."""

    size: int
    """How many bytes the value has in UTF-8."""


class ValueNotReadError(RuntimeError):
    """Code uses a value that was deferred: a bug, never a mistake of a user. Read the whole row first."""

    def __init__(self, value: Deferred) -> None:
        super().__init__(f"a value of {value.size} bytes is used that was not read with its row")


@overload
def text_of(value: str | Deferred) -> str: ...
@overload
def text_of(value: str | Deferred | None) -> str | None: ...
def text_of(value: str | Deferred | None) -> str | None:
    """Return a value of a row that was read whole.

    Raises:
        ValueNotReadError: It was not.
    """
    if isinstance(value, Deferred):
        raise ValueNotReadError(value)
    return value
