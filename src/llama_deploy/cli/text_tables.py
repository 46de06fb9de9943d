"""Rows of text in aligned columns."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def terminal_width() -> int | None:
    """Return how many characters a line may have. None: stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def shorten(text: str, length: int) -> str:
    """Return a text that has at most this many characters, with an ellipsis if it was longer."""
    return text if len(text) <= length else f"{text[: max(0, length - 1)]}…"


def age(at: datetime, *, now: datetime) -> str:
    """Return how long ago something was, in the largest unit that fits."""
    seconds = max(0, int((now - at).total_seconds()))
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return "0 s"


def aligned(rows: Sequence[Sequence[str]], *, width: int | None, right: int | None = None) -> Iterator[str]:
    """Yield rows whose columns begin below each other.

    Args:
        rows: The texts of the columns of each row. All rows have the same number of columns.
        width: How many characters a row may have; the end of a longer row is cut, but
            never its first column, which is an id. None: any number.
        right: The number of the column that is aligned at its end.
    """
    places = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        columns = [
            text.rjust(place) if number == right else text.ljust(place)
            for number, (text, place) in enumerate(zip(row, places, strict=True))
        ]
        line = "  ".join(columns).rstrip()
        if width is None or len(line) <= width:
            yield line
        else:
            yield row[0] if width <= len(row[0]) else shorten(line, width)
