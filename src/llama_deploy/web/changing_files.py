"""Files that may be replaced while a process uses them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]
"""What changes with the content of files. None: the file cannot be looked at."""


def stamp_of(paths: Iterable[Path | str]) -> Stamp:
    """Return the stamp of files, which are not read: some microseconds for each."""
    return tuple(map(_stamp, paths))


def _stamp(path: Path | str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - three times as fast as the method
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
