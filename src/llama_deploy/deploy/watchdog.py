"""Ends this process in time after it was asked to stop, whatever its steps do.

A step can block the event loop, or leave a thread behind that the interpreter would wait for. The signal then
has no effect, or too late a one. The watchdog is a thread that needs neither the loop nor the main thread.
It cannot help while a C function holds the GIL: then only another process can end this one.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from llama_deploy.concurrency.forked_children import forget_signal, restore_in_children
from llama_deploy.services.run.steps import running_steps
from llama_deploy.services.run.steps.step_guard import running_code

GRACE_SECONDS: Final = 2.0
"""How long after `drain_timeout` the process has ended at the latest."""
_MARGIN: Final = 0.25
"""Seconds that the end itself may take."""
_FLUSH_SECONDS: Final = 0.15
_LONGEST_WAIT: Final = 3600.0
_WAKE: Final = b"\0"


class Watchdog:
    """Ends the process when a deadline is over. `open` and `close` it in the main thread.

    The first signal sets the deadline, in C code: it needs neither the loop nor the main thread.

    Args:
        signals: The signals that ask this process to stop.
        drain_seconds: How long running tasks may take to end after such a signal.
        grace: How many seconds later the process has ended at the latest.
    """

    def __init__(
        self, signals: Collection[int], *, drain_seconds: float, grace: float = GRACE_SECONDS
    ) -> None:
        self._signals = signals
        self._grace = grace
        self.drain_seconds = drain_seconds
        self._asked_at: float | None = None
        self._deadline: float | None = None
        self._code = 1
        self._is_closed = False
        self._handlers: dict[signal.Signals, tuple[object, Any]] = {}
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._outer = -1
        self._main = threading.main_thread().ident or 0

    def open(self) -> None:
        """Start watching."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        self._outer = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def handle(self, signum: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> None:
        """Handle a signal in this process until `close`, but not in its forked children."""
        self._handlers[signum] = (handler, signal.signal(signum, handler))
        is_interrupt = signum == signal.SIGINT
        restore_in_children(signum, signal.default_int_handler if is_interrupt else signal.SIG_DFL)

    def close(self) -> None:
        """Stop watching, forget a deadline, and restore the handlers. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for signum, (handler, found) in self._handlers.items():
            forget_signal(signum)
            if signal.getsignal(signum) == handler:
                signal.signal(signum, found)
        if (other := signal.set_wakeup_fd(self._outer)) != self._writer.fileno():
            signal.set_wakeup_fd(other)  # an event loop has taken its place meanwhile
        self._wake()

    def expect_end(self, code: int, *, seconds: float | None = None) -> None:
        """End the process with this exit code, unless it has ended by itself in time.

        May be called in signal handlers. The earliest deadline counts.

        Args:
            code: The exit code.
            seconds: In how many seconds, `grace` included. None: when the running tasks should have
                ended.
        """
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        if seconds is None:
            seconds = self.drain_seconds + self._grace
        deadline = now + max(0.0, seconds - _MARGIN)
        if self._deadline is None or deadline < self._deadline:
            self._deadline, self._code = deadline, code
            self._wake()

    def _wake(self) -> None:
        with suppress(OSError):
            self._writer.send(_WAKE)

    def _run(self) -> None:
        while not self._is_closed:
            wait = _LONGEST_WAIT if self._deadline is None else self._deadline - time.monotonic()
            if wait <= 0:
                self._end()
            self._reader.settimeout(min(wait, _LONGEST_WAIT))
            with suppress(TimeoutError):
                for number in self._reader.recv(64):
                    self._on_byte(number)
        self._reader.close()
        self._writer.close()

    def _on_byte(self, number: int) -> None:
        if number and self._outer != -1:
            with suppress(OSError):
                os.write(self._outer, bytes([number]))
        if number in self._signals and self._deadline is None:
            self.expect_end(128 + number)

    def _end(self) -> None:
        seconds = time.monotonic() - (self._asked_at or time.monotonic())
        with suppress(Exception):
            line = f"Ending now, {seconds:.1f} s after it was asked to. Still running: {self._rest()}.\n"
            os.write(2, line.encode(errors="replace"))
        # A thread that does not end may hold the lock of a stream, or nobody may read it.
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(_FLUSH_SECONDS)
        os._exit(self._code)

    def _rest(self) -> str:
        """Return what still runs, in words."""
        threads = [
            f"the thread {each.name!r}"
            for each in threading.enumerate()
            if not each.daemon and each is not threading.main_thread()
        ]
        return "; ".join(
            [*running_steps.described(), *threads, f"the main thread, in {running_code(self._main)}"]
        )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
