"""How many file descriptors this process may still open."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

_LISTING: Final = Path("/dev/fd")
"""Lists the descriptors of this process, on Linux and macOS."""


def free_descriptors() -> tuple[int, int] | None:
    """Return how many descriptors are free, and how many there may be. None: there is no limit.

    What it opens itself to count does not count.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        used = len(os.listdir(_LISTING)) - 1  # noqa: PTH208 - a list costs less than a path for each
    except OSError:
        return 0, limit
    return limit - used, limit
