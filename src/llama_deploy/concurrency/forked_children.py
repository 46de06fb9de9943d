"""What a forked child must not keep of this process: it lets go of it at once.

A child of `os.fork`, of `multiprocessing` with the start method `fork`, or of `ProcessPoolExecutor` has a
copy of each file descriptor, and may outlive its parent. Then the port and the lock of the store would stay
taken, and clients would wait for answers on connections that nobody reads. Programs that `subprocess` starts
are not concerned: Python closes its descriptors when another program is executed.

The descriptors are not closed but point at `/dev/null`: objects in the child still have their numbers, and
may close them later. The parent notices nothing. Its locks are those of `flock`, which belong to the open
file: closing a copy of the descriptor does not release them.
"""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

_DESCRIPTORS: Final = Path("/proc/self/fd")
_EPOLL: Final = "anon_inode:[eventpoll]"
_TARGET: Final = re.compile(r"^tfd:\s*(\d+)", re.MULTILINE)

_kept: Final[set[int]] = set()
_signals: Final[dict[int, Any]] = {}


def keep_from_children(descriptor: int) -> None:
    """Let children that are forked from now on not have this descriptor.

    If an event loop watches it, as it does with a listening socket, children do not get the loop and its
    connections either. That needs Linux.
    """
    _kept.add(descriptor)


def forget(descriptor: int) -> None:
    """Undo `keep_from_children`; call it before the descriptor is closed. Idempotent."""
    _kept.discard(descriptor)


def restore_in_children(signum: int, handler: Any) -> None:
    """Let children handle a signal with `handler`, and not tell this process of it."""
    _signals[signum] = handler


def forget_signal(signum: int) -> None:
    """Undo `restore_in_children`. Idempotent."""
    _signals.pop(signum, None)


def _let_go() -> None:
    """Let go of everything, in a child."""
    if _signals or _kept:
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)
            for signum, handler in _signals.items():
                signal.signal(signum, handler)
    if _kept:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in _kept | _of_loops(_kept):
            with suppress(OSError):
                os.dup2(null, descriptor, inheritable=False)
        os.close(null)
    _signals.clear()
    _kept.clear()


def _of_loops(kept: set[int]) -> set[int]:
    """Return the descriptors of the event loops that watch one of `kept`, and all that they watch."""
    found: set[int] = set()
    with suppress(OSError):
        for each in _DESCRIPTORS.iterdir():
            with suppress(OSError):
                if str(each.readlink()) != _EPOLL:
                    continue
                watched = set(map(int, _TARGET.findall(Path(f"/proc/self/fdinfo/{each.name}").read_text())))
                if watched & kept:
                    found |= {int(each.name), *watched}
    return found


os.register_at_fork(after_in_child=_let_go)
