"""Printing to stderr in a signal handler, which may have interrupted somebody who writes to the stream."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def note_in_handler(message: str) -> None:
    """Print a line to stderr. May be called in signal handlers."""
    if sys.stderr is not None:
        with suppress(OSError):
            os.write(sys.stderr.fileno(), f"{message}\n".encode())
