"""The exit codes of the commands."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of the commands."""

    FAILED = 1
    """The task failed, or the command could not do its work."""
    USAGE = 2
    """Wrong usage."""
    NOT_FOUND = 3
    """The control plane does not respond, or the service or session does not exist."""
    OUTPUT = 74
    """Stdout cannot be written, for example because the disk is full; `EX_IOERR` of sysexits.h."""
    TIMED_OUT = 124
    """The command took longer than `--timeout`; `timeout` of GNU coreutils has the same code."""
    INTERRUPTED = 130
    """The user pressed Ctrl-C."""
    BROKEN_PIPE = 141
    """Nobody reads the output any more; a shell shows the same for a program that SIGPIPE has ended."""
