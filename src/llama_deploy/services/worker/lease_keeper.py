"""Keeps an instance's leases: sends heartbeats, and does what the answers say."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

from llama_deploy.errors import LlamaDeployError
from llama_deploy.services.background import BackgroundTasks
from llama_deploy.services.worker.heartbeat import HeartbeatThread
from llama_deploy.services.worker.held_attempts import HeldAttempts
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.services.worker.worker_settings import WorkerSettings
from llama_deploy.types.instance_protocol import Heartbeat, HeartbeatReply

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews the leases of an instance from `start` to `close`.

    Args:
        settings: The instance, and how long its leases last.
        beat: Sends a heartbeat; called in a thread.
        ledger: Knows what the instance holds.
        attempts: The attempts under way.
        register: Registers the instance again.
        on_reply: Called after each answer was processed.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        beat: Callable[[Heartbeat], HeartbeatReply],
        ledger: Ledger,
        attempts: HeldAttempts,
        register: Callable[[], Awaitable[None]],
        on_reply: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._send = beat
        self._ledger = ledger
        self._attempts = attempts
        self._register = register
        self._on_reply = on_reply
        self._renewed_at = time.monotonic()
        """When the last heartbeat whose answer was processed was sent."""
        self._renewed = asyncio.Event()
        self._tasks: BackgroundTasks | None = BackgroundTasks(f"service {settings.service_name}")
        """None: closed."""
        self._heartbeat = HeartbeatThread(
            beat=self._beat,
            on_reply=self._process,
            lease_seconds=settings.registration.lease_seconds,
            blocked_limit=settings.blocked_limit,
            name=settings.service_name,
        )

    def start(self) -> None:
        """Begin to send heartbeats."""
        self._heartbeat.start()

    def beat_now(self) -> None:
        """Send the next heartbeat now."""
        self._heartbeat.beat_now()

    async def hold(self) -> None:
        """Return when the control plane has answered within the lease.

        If this process was suspended for longer, other instances may have its tasks.
        """
        while time.monotonic() - self._renewed_at > self._settings.registration.lease_seconds:
            self._renewed.clear()
            self._heartbeat.beat_now()
            await self._renewed.wait()

    async def close(self) -> None:
        """Stop. Idempotent."""
        tasks, self._tasks = self._tasks, None
        await self._heartbeat.close()
        if tasks:
            tasks.cancel()
            await asyncio.wait(set(tasks))

    def _beat(self, last_reply_at: datetime | None) -> HeartbeatReply:
        held, claiming = self._ledger.snapshot()
        return self._send(
            Heartbeat(
                instance_id=self._settings.instance_id, held=held, claiming=claiming, heard_at=last_reply_at
            )
        )

    def _process(self, reply: HeartbeatReply, sent_at: float) -> None:
        if self._tasks is None:
            return
        if not reply.known:
            self._tasks.spawn(self._register_again())
        for held in reply.stale:
            self._ledger.drop(held.task_id, held.attempt)
            self._attempts.abandon(held)
        for cancellation in reply.cancelled:
            self._attempts.cancel(cancellation)
        if reply.inbox:
            self._tasks.spawn(self._attempts.deliver(reply.inbox))
        self._renewed_at = sent_at
        self._renewed.set()
        self._on_reply()

    async def _register_again(self) -> None:
        try:
            await self._register()
        except LlamaDeployError as exc:
            logger.warning(
                "the control plane does not know service %s, and registering it failed: %s",
                self._settings.service_name,
                exc,
                extra={"action": "register_failed", "service_name": self._settings.service_name},
            )
