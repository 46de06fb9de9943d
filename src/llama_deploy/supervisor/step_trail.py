"""Which steps a process executes, in memory that its supervisor can read while the interpreter is held.

The memory has slots. The first one belongs to the thread of the event loop, which executes one step at a
time; each step in a thread takes another one. A slot holds whether a step is executing, since when, and the
names of step and task.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final

_SLOTS: Final = 64
_SLOT_BYTES: Final = 512
SIZE: Final = _SLOTS * _SLOT_BYTES
"""The size of the memory in bytes."""
_SINCE: Final = struct.Struct("=d")
_LENGTH: Final = struct.Struct("=H")
_HEAD: Final = 1 + _SINCE.size
"""A byte that tells whether a step is executing, then the monotonic time since when."""
_TEXT: Final = _HEAD + _LENGTH.size
_MAX_TEXT: Final = _SLOT_BYTES - _TEXT


@dataclass(frozen=True, slots=True)
class ExecutingStep:
    """A step that a process executes at this moment."""

    task_id: str
    step_name: str
    seconds: float
    """Since when it executes without a pause."""
    is_in_loop: bool
    """Whether it executes in the thread of the event loop."""


class StepTrail:
    """Notes which steps this process executes.

    Args:
        descriptor: The shared memory, of `SIZE` bytes. Its owner may close it afterwards.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, SIZE)
        self._free = list(range(1, _SLOTS))
        self._lock = threading.Lock()
        self._in_loop: LoopMark | None = None
        """Whose text the first slot holds."""

    def of_task(self, task_id: str) -> TaskTrail:
        """Return the trail of the steps of one task."""
        return TaskTrail(self, task_id)

    def in_loop(self, task_id: str, step_name: str) -> LoopMark:
        """Return what notes that a step executes in the thread of the event loop, each time that it does."""
        return LoopMark(self, _text(task_id, step_name))

    @contextmanager
    def in_thread(self, task_id: str, step_name: str) -> Iterator[None]:
        """Note that a step executes in a thread of its own. Beyond the number of slots nothing is noted."""
        with self._lock:
            slot = self._free.pop() if self._free else None
        if slot is None:
            yield
            return
        at = slot * _SLOT_BYTES
        text = _text(task_id, step_name)
        self._memory[at + _HEAD : at + _HEAD + len(text)] = text
        self._memory[at + 1 : at + _HEAD] = _SINCE.pack(time.monotonic())
        self._memory[at] = 1
        try:
            yield
        finally:
            self._memory[at] = 0
            with self._lock:
                self._free.append(slot)

    def enter_loop(self, mark: LoopMark) -> None:
        """Note that the thread of the loop continues a step."""
        if self._in_loop is not mark:
            self._in_loop = mark
            self._memory[_HEAD : _HEAD + len(mark.text)] = mark.text
        self._memory[1:_HEAD] = _SINCE.pack(time.monotonic())
        self._memory[0] = 1

    def leave_loop(self) -> None:
        """Note that the thread of the loop executes no step."""
        self._memory[0] = 0


@dataclass(frozen=True, slots=True)
class TaskTrail:
    """The trail of the steps of one task."""

    trail: StepTrail
    task_id: str

    def in_loop(self, step_name: str) -> LoopMark:
        """See `StepTrail.in_loop`."""
        return self.trail.in_loop(self.task_id, step_name)

    def in_thread(self, step_name: str) -> AbstractContextManager[None]:
        """See `StepTrail.in_thread`."""
        return self.trail.in_thread(self.task_id, step_name)


class LoopMark:
    """A step that executes in the thread of the event loop, piece by piece."""

    __slots__ = ("_trail", "text")

    def __init__(self, trail: StepTrail, text: bytes) -> None:
        self._trail = trail
        self.text = text

    def enter(self) -> None:
        """The step continues."""
        self._trail.enter_loop(self)

    def leave(self) -> None:
        """The step awaits something, or has ended."""
        self._trail.leave_loop()


def new_memory() -> int:
    """Return the descriptor of new shared memory for a `StepTrail`, all zero. Close it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("llama_deploy_steps")
    else:
        import tempfile  # noqa: PLC0415 - only where the system has no anonymous files

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, SIZE)
    return descriptor


def read_trail(descriptor: int) -> list[ExecutingStep]:
    """Return the steps that a process executes, that in the thread of its event loop first.

    The process must be held or stopped: what it changes meanwhile may be read in part.
    """
    now, content = time.monotonic(), os.pread(descriptor, SIZE, 0)
    found = []
    for at in range(0, SIZE, _SLOT_BYTES):
        slot = content[at : at + _SLOT_BYTES]
        if slot[0]:
            (since,), (length,) = _SINCE.unpack_from(slot, 1), _LENGTH.unpack_from(slot, _HEAD)
            task_id, _, step_name = slot[_TEXT : _TEXT + length].decode(errors="replace").partition("\0")
            found.append(ExecutingStep(task_id, step_name, max(0.0, now - since), is_in_loop=at == 0))
    return found


def _text(task_id: str, step_name: str) -> bytes:
    text = f"{task_id}\0{step_name}".encode(errors="replace")[:_MAX_TEXT]
    return _LENGTH.pack(len(text)) + text
