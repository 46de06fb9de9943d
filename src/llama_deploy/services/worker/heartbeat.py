"""Sends heartbeats from a separate thread, and watches the event loop.

A step that blocks the event loop must not look like a dead process, so the lease is renewed from a thread
that does not need the loop. A second thread detects a blocked loop, and reports which step blocks it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from llama_deploy.concurrency.daemon_threads import in_own_thread
from llama_deploy.errors import LlamaDeployError
from llama_deploy.services.run.steps.step_guard import running_code
from llama_deploy.types import BlockedStep
from llama_deploy.types.instance_protocol import HeartbeatReply
from llama_deploy.types.services import MAX_BLOCKED_TEXT

logger = logging.getLogger(__name__)

_PATIENCE: Final = 1.0
"""Seconds within which a healthy loop answers."""
_FIRST_RETRY: Final = 0.2
"""Seconds until a heartbeat that failed is tried again; doubled each time, at most the usual interval."""


@dataclass(slots=True, eq=False)
class HeartbeatThread:
    """Sends heartbeats until `close`. `start` it in the loop that it watches."""

    beat: Callable[[datetime | None], HeartbeatReply]
    """Sends a heartbeat and returns the answer, given `HeartbeatReply.at` of the last one. Called in the
    thread."""
    on_reply: Callable[[HeartbeatReply, float], None]
    """Called in the loop with each answer and the monotonic time at which its heartbeat was sent."""
    interval: float
    """Seconds between two heartbeats."""
    blocked_limit: float
    """Seconds after which heartbeats stop while the loop is blocked."""
    name: str
    """Names the service in the log."""
    _wake: threading.Event = field(default_factory=threading.Event, init=False)
    _closing: bool = field(default=False, init=False)
    _failures: int = field(default=0, init=False)
    failure: str | None = field(default=None, init=False)
    """Why the last heartbeat had no answer. None: it had one, or none was sent. Readable in every thread."""
    _last_reply_at: datetime | None = field(default=None, init=False)
    _watch: LoopWatch | None = field(default=None, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the thread. The first heartbeat is sent at once."""
        loop = asyncio.get_running_loop()
        self._watch = LoopWatch(loop, thread_id=threading.get_ident(), name=self.name)
        self._watch.start()
        self._thread = threading.Thread(
            target=self._run, args=(loop, self._watch), name=f"heartbeat-{self.name}", daemon=True
        )
        self._thread.start()

    @property
    def blocked(self) -> BlockedStep | None:
        """What blocks the loop, None if it is not blocked. Thread-safe."""
        return None if self._watch is None else self._watch.blocked

    @property
    def loop_lag(self) -> float:
        """How many seconds the loop took to take its turn when it was asked last. Thread-safe."""
        return 0.0 if self._watch is None else self._watch.lag

    def beat_now(self) -> None:
        """Send the next heartbeat now."""
        self._wake.set()

    async def close(self) -> None:
        """Stop. Returns when the thread has ended. Idempotent."""
        self._closing = True
        self._wake.set()
        if self._watch is not None and self._thread is not None:
            # The thread may wait for an answer that this loop gives, so the loop must not be blocked.
            await in_own_thread(f"close-{self.name}", self._thread.join)
            await in_own_thread(f"close-{self.name}", self._watch.close)

    def _run(self, loop: asyncio.AbstractEventLoop, watch: LoopWatch) -> None:
        while not self._closing:
            self._wake.clear()
            pause = self.interval
            if watch.blocked_seconds < self.blocked_limit:
                pause = self._send(loop)
            self._wake.wait(pause)

    def _send(self, loop: asyncio.AbstractEventLoop) -> float:
        """Send one heartbeat and return the seconds until the next."""
        sent_at = time.monotonic()
        try:
            reply = self.beat(self._last_reply_at)
        except Exception as exc:  # noqa: BLE001 - the thread must survive, or the lease ends
            return self._failed(exc)
        if self._failures:
            logger.info(
                "the control plane answers service %s again",
                self.name,
                extra={"action": "heartbeat_recovered", "service_name": self.name},
            )
        self._failures, self.failure = 0, None
        self._last_reply_at = reply.at
        if not self._closing:
            _call_in(loop, self.on_reply, reply, sent_at)
        return self.interval

    def _failed(self, exc: Exception) -> float:
        if not self._failures and not self._closing:
            foreseen = isinstance(exc, LlamaDeployError | OSError)
            logger.warning(
                "the control plane does not answer the heartbeats of service %s: %s; retrying"
                if foreseen
                else "the heartbeats of service %s fail: %s; retrying",
                self.name,
                exc,
                exc_info=None if foreseen else exc,
                extra={"action": "heartbeat_failed", "service_name": self.name},
            )
        self.failure = str(exc) or type(exc).__name__
        delay = min(_FIRST_RETRY * 2 ** min(self._failures, 16), self.interval)
        self._failures += 1
        return float(delay)


class LoopWatch:
    """A thread that detects a blocked event loop. `start` it, then `close` it.

    Args:
        loop: The loop.
        thread_id: The thread in which it runs.
        name: Names the service in the log.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, thread_id: int, name: str) -> None:
        self._loop = loop
        self._thread_id = thread_id
        self._name = name
        self._answered = threading.Event()
        self._closing = threading.Event()
        self._asked_at = time.monotonic()
        self._warned = False
        self.lag = 0.0
        """How many seconds the loop took to answer last. Readable in every thread."""
        self._thread = threading.Thread(target=self._run, name=f"watch-{name}", daemon=True)

    @property
    def blocked_seconds(self) -> float:
        """For how many seconds the loop has been blocked; 0 if it is not. Thread-safe."""
        return time.monotonic() - self._asked_at if self._warned else 0.0

    @property
    def blocked(self) -> BlockedStep | None:
        """What blocks the loop, None if it is not blocked. Thread-safe."""
        code, seconds = running_code(self._thread_id), self.blocked_seconds
        if not seconds:
            return None
        return BlockedStep(
            task_id=_bounded(code.task_id),
            step=_bounded(code.step_name),
            seconds=seconds,
            place=code.place[-MAX_BLOCKED_TEXT:],
        )

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching. Blocks until the thread has ended. Idempotent."""
        self._closing.set()
        self._answered.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._answered.clear()
            self._asked_at = time.monotonic()
            if not _call_in(self._loop, self._answer):
                return
            if not self._answered.wait(_PATIENCE) and not self._closing.is_set():
                self._warn()
                self._answered.wait()
            self._closing.wait(_PATIENCE)

    def _warn(self) -> None:
        self._warned = True
        code = running_code(self._thread_id)
        logger.warning(
            "the event loop of service %s has been blocked for %.1f s by %s; its other tasks wait. "
            "Use `await` for long operations, or make the step a plain function, which runs in a thread",
            self._name,
            time.monotonic() - self._asked_at,
            code,
            extra={"action": "loop_blocked", "service_name": self._name, "task_id": code.task_id},
        )

    def _answer(self) -> None:
        self.lag = time.monotonic() - self._asked_at
        if self._warned:
            self._warned = False
            logger.info(
                "the event loop of service %s is free again after %.1f s",
                self._name,
                time.monotonic() - self._asked_at,
                extra={"action": "loop_free", "service_name": self._name},
            )
        self._answered.set()


def _bounded(text: str | None) -> str | None:
    return None if text is None else text[:MAX_BLOCKED_TEXT]


def _call_in(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: object) -> bool:
    """Call in the loop's thread; False if the loop is closed."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        return False
    return True
