"""Notices that somebody has deleted or replaced files that this process holds open."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from llama_deploy.errors import UnavailableError


@dataclass(slots=True, eq=False)
class OpenedFiles:
    """Files that this process has opened. What is written to one that was deleted is lost with the process.

    Args:
        paths: The files, which exist now.
        owner: What they belong to, for the error.
    """

    paths: Iterable[Path]
    owner: str
    _known: dict[str, tuple[int, int] | None] = field(init=False)

    def __post_init__(self) -> None:
        """Note which files these are."""
        self._known = {str(path): _identity(str(path)) for path in self.paths}

    def check(self) -> None:
        """Check that the files are still at their paths. Takes about a microsecond for each.

        Raises:
            UnavailableError: One is not.
        """
        for path, known in self._known.items():
            try:
                found = os.stat(path)  # noqa: PTH116 - a path object costs more than the call
                is_there = known == (found.st_dev, found.st_ino)
            except OSError:
                is_there = known is None
            if not is_there:
                raise UnavailableError(
                    f"the file {path} of {self.owner} was deleted, moved or replaced while it was open; what"
                    " is stored now would be lost. Put the file back, or stop this process and start it"
                    " again with the file that is to be used"
                )


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells a file from all others, None if it does not exist."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - a path object costs more than the call
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
