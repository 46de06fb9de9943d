"""What the workers of this process share: all step back while one task needs the process for itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from llama_deploy.types import generate_id


@dataclass(frozen=True, slots=True, eq=False)
class ProcessMember:
    """A worker of the process. Both are called in any thread."""

    busy: Callable[[], int]
    """Returns how many tasks it works on."""
    wake: Callable[[], None]
    """Called when something has changed that it may wait for."""


@dataclass(slots=True, eq=False)
class SharedProcess:
    """The workers of a process, in any of its threads, and the one that needs it for itself. Thread-safe."""

    id: str = field(default_factory=generate_id)
    """Names the process: the control plane judges the instances of a process together."""
    _members: set[ProcessMember] = field(default_factory=set, init=False)
    _owner: ProcessMember | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def is_reserved(self) -> bool:
        """Whether one of the workers needs the process for itself, so that none takes other tasks."""
        return self._owner is not None

    def join(self, member: ProcessMember) -> None:
        """A worker begins."""
        with self._lock:
            self._members.add(member)

    def leave(self, member: ProcessMember) -> None:
        """A worker has ended. Idempotent."""
        with self._lock:
            self._members.discard(member)
        self.release(member)
        self.changed()

    def reserve(self, member: ProcessMember) -> bool:
        """Let no worker take tasks until `release`. False: another one needs the process."""
        with self._lock:
            if self._owner is not None:
                return self._owner is member
            self._owner = member
            members = list(self._members)
        for each in members:
            each.wake()
        return True

    def is_owned_by(self, member: ProcessMember) -> bool:
        """Whether a worker has reserved the process."""
        return self._owner is member

    def is_idle(self) -> bool:
        """Whether none of the workers works on a task."""
        with self._lock:
            members = list(self._members)
        return not any(member.busy() for member in members)

    def changed(self) -> None:
        """A worker has ended a task: the one that waits for that looks again."""
        if (owner := self._owner) is not None:
            owner.wake()

    def release(self, member: ProcessMember) -> None:
        """End `reserve`. Idempotent."""
        with self._lock:
            if self._owner is not member:
                return
            self._owner = None
            members = list(self._members)
        for each in members:
            each.wake()


@cache
def _of(pid: int) -> SharedProcess:  # noqa: ARG001 - a forked child is another process
    return SharedProcess()


def this_process() -> SharedProcess:
    """Return what the workers of this process share."""
    return _of(os.getpid())
