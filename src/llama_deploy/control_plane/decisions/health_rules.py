"""When a resource of a control plane is scarce. Pure: without a clock, and without I/O."""

from __future__ import annotations

from typing import Final

_MIN_FREE_PART: Final = 0.05
"""Of a small disk, this part is enough."""
_MIN_FREE_FILES: Final = 16
_MIN_FREE_DESCRIPTORS: Final = 16
_MIB: Final = 1024 * 1024


def disk_problem(folder: str, *, free: int, size: int, min_free: int, free_files: int | None) -> str | None:
    """Return what is wrong with the disk of a folder, None if nothing is.

    Args:
        folder: The folder, for the text.
        free: The bytes that this process may still write.
        size: The bytes of the whole disk.
        min_free: How many bytes should be free; of a small disk, a twentieth is enough.
        free_files: How many files this process may still create. None: there is no limit.
    """
    enough = min(min_free, int(size * _MIN_FREE_PART))
    if free < enough:
        return (
            f"the disk of {folder} has {free / _MIB:.1f} MiB free, and {enough / _MIB:.1f} MiB are needed;"
            " delete files there, or enlarge it"
        )
    if free_files is not None and free_files < _MIN_FREE_FILES:
        return f"the file system of {folder} has room for {free_files} more files only; delete files there"
    return None


def descriptor_problem(free: int, limit: int) -> str | None:
    """Return what is wrong with the file descriptors of a process, None if nothing is."""
    if free >= min(_MIN_FREE_DESCRIPTORS, limit // 2):
        return None
    return (
        f"the process has {max(0, free)} of {limit} file descriptors left, so that it cannot accept"
        " connections; raise its limit (ulimit -n), or let fewer clients connect at the same time"
    )
