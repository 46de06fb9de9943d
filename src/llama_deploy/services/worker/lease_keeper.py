"""Keeps an instance's leases: sends heartbeats, and does what the answers say."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from llama_deploy.errors import LlamaDeployError
from llama_deploy.services.background import BackgroundTasks
from llama_deploy.services.worker.heartbeat import HeartbeatThread
from llama_deploy.services.worker.held_attempts import HeldAttempts
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.services.worker.worker_settings import WorkerSettings
from llama_deploy.types.instance_protocol import BEATS_PER_LEASE, Heartbeat, HeartbeatReply

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class LeaseKeeper:
    """Renews the leases of an instance from `start` to `close`."""

    settings: WorkerSettings
    beat: Callable[[Heartbeat], HeartbeatReply]
    """Sends a heartbeat; called in a thread."""
    ledger: Ledger
    attempts: HeldAttempts[Any]
    register: Callable[[], Awaitable[None]]
    """Registers the instance again."""
    on_reply: Callable[[HeartbeatReply], None]
    """Called after each answer was processed."""
    is_alone: Callable[[], bool] = lambda: False
    """Whether the instance runs suspects alone in its process, or is about to."""
    steps_back: Callable[[], bool] = lambda: False
    """Whether the instance takes no tasks for a while, because its process is needed for a suspect."""
    _heartbeat: HeartbeatThread = field(init=False)
    _tasks: BackgroundTasks = field(init=False)
    _is_closed: bool = field(default=False, init=False)
    _is_draining: bool = field(default=False, init=False)
    _renewed_at: float = field(default_factory=time.monotonic, init=False)
    """When the last heartbeat whose answer was processed was sent."""
    _renewed: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        """Create the thread that sends heartbeats."""
        self._tasks = BackgroundTasks(f"service {self.settings.service_name}")
        self._heartbeat = HeartbeatThread(
            beat=self._beat,
            on_reply=self._process,
            interval=self.settings.registration.lease_seconds / BEATS_PER_LEASE,
            blocked_limit=self.settings.blocked_limit,
            name=self.settings.service_name,
        )

    @property
    def problem(self) -> str | None:
        """Why the lease may end: the loop is blocked, or heartbeats have no answers. Thread-safe."""
        blocked, failure = self._heartbeat.blocked, self._heartbeat.failure
        if blocked is not None:
            step = f" by the step {blocked.step!r} of task {blocked.task_id}" if blocked.task_id else ""
            return f"the event loop has been blocked for {blocked.seconds:.1f} s{step}, {blocked.place}"
        return None if failure is None else f"the control plane does not answer its heartbeats: {failure}"

    @property
    def blocked_seconds(self) -> float:
        """For how many seconds the event loop has been blocked; 0 if it is not. Thread-safe."""
        blocked = self._heartbeat.blocked
        return 0.0 if blocked is None else blocked.seconds

    @property
    def loop_lag(self) -> float:
        """See `HeartbeatThread.loop_lag`. Thread-safe."""
        return self._heartbeat.loop_lag

    def start(self) -> None:
        """Begin to send heartbeats."""
        self._heartbeat.start()

    def beat_now(self) -> None:
        """Send the next heartbeat now."""
        self._heartbeat.beat_now()

    def drain(self) -> None:
        """Tell the control plane, with a heartbeat now, that the instance takes no more tasks."""
        self._is_draining = True
        self._heartbeat.beat_now()

    async def hold(self) -> None:
        """Return when the control plane has answered within the lease.

        If this process was suspended for longer, other instances may have its tasks.
        """
        while time.monotonic() - self._renewed_at > self.settings.registration.lease_seconds:
            self._renewed.clear()
            self._heartbeat.beat_now()
            await self._renewed.wait()

    async def close(self) -> None:
        """Stop. Idempotent."""
        self._is_closed = True
        await self._heartbeat.close()
        self._tasks.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _beat(self, last_reply_at: datetime | None) -> HeartbeatReply:
        held, claiming = self.ledger.snapshot(waiting_for=self.settings.registration.lease_seconds)
        blocked = self._heartbeat.blocked
        return self.beat(
            Heartbeat(
                instance_id=self.settings.instance_id,
                held=held,
                claiming=claiming,
                heard_at=last_reply_at,
                slots=self._open_slots,
                running=len(self.attempts),
                blocked_seconds=0.0 if blocked is None else blocked.seconds,
                blocked=[] if blocked is None else [blocked],
                alone=self.is_alone(),
            )
        )

    @property
    def _open_slots(self) -> int:
        # One that only runs suspects is known by reporting its slot until the end.
        takes_none = not self.settings.alone and (self._is_draining or self.steps_back())
        return 0 if takes_none else self.settings.max_concurrent_tasks

    def _process(self, reply: HeartbeatReply, sent_at: float) -> None:
        if self._is_closed:
            return
        if not reply.known:
            self._tasks.spawn(self._register_again())
        for held in reply.stale:
            self.ledger.drop(held.task_id, held.attempt)
            self.attempts.abandon(held)
        for cancellation in reply.cancelled:
            self.attempts.cancel(cancellation)
        if reply.inbox:
            self._tasks.spawn(self.attempts.deliver(reply.inbox))
        self._renewed_at = sent_at
        self._renewed.set()
        self.on_reply(reply)

    async def _register_again(self) -> None:
        try:
            await self.register()
        except LlamaDeployError as exc:
            logger.warning(
                "the control plane does not know service %s, and registering it failed: %s",
                self.settings.service_name,
                exc,
                extra={"action": "register_failed", "service_name": self.settings.service_name},
            )
