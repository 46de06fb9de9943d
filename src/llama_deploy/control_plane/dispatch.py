"""What happens without a request: messages leave the outbox, leases end, lost messages are repeated."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.control_plane import lifecycle
from llama_deploy.control_plane.unit import Outgoing, Unit
from llama_deploy.control_plane.writer import Command, Writer
from llama_deploy.errors import LlamaDeployError
from llama_deploy.message_queues.base import AbstractMessageQueue, PublishCallback
from llama_deploy.messages import QueueMessage
from llama_deploy.state_stores.base import InstanceRecord, StateStore, StoreTransaction, TaskRecord

logger = logging.getLogger(__name__)

_PUBLISH_AT_ONCE: Final = 256
_MAX_RETRY_SECONDS: Final = 5.0
_PAGE: Final = 500
_ALL: Final = 1_000_000_000
_FORGET_INSTANCE_SECONDS: Final = 60.0
"""How long an instance whose lease has ended stays listed."""
_LATE_SECONDS: Final = 1.0
"""A sweep that starts so late says that this process stood still, and that it may have missed heartbeats."""


class OutboxRelay:
    """Hands stored messages to the queue, in order for each topic, until it has them.

    Args:
        queue: The message queue.
        on_sent: Told the ids of messages that the queue has.
        publish_callback: Called with each of them.
    """

    def __init__(
        self,
        queue: AbstractMessageQueue,
        *,
        on_sent: Callable[[Sequence[str]], None],
        publish_callback: PublishCallback | None = None,
    ) -> None:
        self._queue = queue
        self._publish_callback = publish_callback
        self._on_sent = on_sent
        self._waiting: dict[str, deque[QueueMessage]] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self.backlog = 0
        """How many messages wait."""

    def send(self, outgoing: Sequence[Outgoing]) -> None:
        """Hand in messages that are stored in the outbox."""
        for item in outgoing:
            self._waiting.setdefault(item.topic, deque()).append(item.message)
            self.backlog += 1
            if item.topic not in self._workers:
                self._workers[item.topic] = asyncio.create_task(
                    self._relay(item.topic), name=f"outbox-{item.topic}"
                )

    async def close(self) -> None:
        """Stop; what was not sent stays in the outbox. Idempotent."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    async def _relay(self, topic: str) -> None:
        waiting = self._waiting[topic]
        failures = 0
        while waiting:
            batch = [waiting.popleft() for _ in range(min(len(waiting), _PUBLISH_AT_ONCE))]
            outcomes = await asyncio.gather(
                *(self._queue.publish(message, topic, self._publish_callback) for message in batch),
                return_exceptions=True,
            )
            unsent = []
            errors = []
            for message, outcome in zip(batch, outcomes, strict=True):
                if outcome is not None:
                    unsent.append(message)
                    errors.append(outcome)
            self.backlog -= len(batch) - len(unsent)
            unsent_ids = {message.id_ for message in unsent}
            self._on_sent([message.id_ for message in batch if message.id_ not in unsent_ids])
            if not unsent:
                if failures:
                    logger.info("topic %s takes messages again", topic, extra={"action": "queue_back"})
                failures = 0
                continue
            waiting.extendleft(reversed(unsent))
            failures += 1
            if failures == 1:
                logger.warning(
                    "topic %s takes no messages, %d wait: %s",
                    topic,
                    len(waiting),
                    errors[0],
                    extra={"action": "queue_lost"},
                )
            await asyncio.sleep(min(0.05 * 2**failures, _MAX_RETRY_SECONDS))
        del self._workers[topic], self._waiting[topic]


class Sweeper:
    """Moves tasks on whose instance has fallen silent, and repeats messages that nobody has claimed.

    It sleeps until something can be due; with no instances and nothing queued it does nothing.

    Args:
        store: What is looked at.
        writer: How it is changed.
        clock: Returns the present time, aware, UTC.
        lease_seconds: How long an instance may be silent.
        redispatch_seconds: After how long an unclaimed attempt is handed to the queue again.
    """

    def __init__(
        self,
        *,
        store: StateStore,
        writer: Writer,
        clock: Callable[[], datetime],
        lease_seconds: float,
        redispatch_seconds: float,
    ) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._lease = timedelta(seconds=lease_seconds)
        self._redispatch = timedelta(seconds=redispatch_seconds)
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Something has a time limit now: look when it is due."""
        self._woken.set()

    async def run(self) -> None:
        """Sweep until cancelled. Errors of the store are logged and the sweep is tried again."""
        while True:
            try:
                pause = await self._sweep()
            except LlamaDeployError:
                logger.exception("sweep failed; trying again", extra={"action": "sweep"})
                pause = self._lease
            await self._sleep(pause)

    async def _sleep(self, pause: timedelta | None) -> None:
        self._woken.clear()
        due = self._clock() + pause if pause is not None else None
        try:
            async with asyncio.timeout(max(pause.total_seconds(), 0.0) if pause is not None else None):
                await self._woken.wait()
        except TimeoutError:
            pass
        else:
            return
        if due is not None and (self._clock() - due).total_seconds() > _LATE_SECONDS:
            logger.warning("this process stood still; leases are renewed", extra={"action": "renew_leases"})
            await self.renew_leases()

    async def renew_leases(self) -> None:
        """Give every instance a fresh lease, because its heartbeats could not have been heard."""
        instances = await self._store.read(lambda tx: tx.load_instances())

        def run(unit: Unit) -> None:
            unit.tx.put_instances(
                [replace(instance, lease_expires_at=unit.now + self._lease) for instance in instances]
            )

        if instances:
            await self._writer.write(Command(run))

    async def dispatch_queued(self) -> None:
        """Hand every queued attempt to the queue again: it has lost all its messages."""
        tasks = await self._store.read(lambda tx: tx.queued_tasks(limit=_ALL))
        for start in range(0, len(tasks), _PAGE):
            await self._dispatch_again(tasks[start : start + _PAGE])

    async def _sweep(self) -> timedelta | None:
        """Do what is due, and return how long nothing else can be."""
        now = self._clock()

        def read(tx: StoreTransaction) -> tuple[list[InstanceRecord], list[TaskRecord]]:
            return tx.load_instances(), tx.queued_tasks(due_before=now, limit=_PAGE)

        instances, unclaimed = await self._store.read(read)
        await self._expire([item for item in instances if item.lease_expires_at <= now])
        await self._dispatch_again(unclaimed)
        pauses = [item.lease_expires_at - now for item in instances if item.lease_expires_at > now]
        pauses.append(self._redispatch)
        return min(pauses)

    async def _expire(self, instances: Sequence[InstanceRecord]) -> None:
        if not instances:
            return
        expired_ids = [instance.instance_id for instance in instances]

        def run(unit: Unit) -> list[TaskRecord]:
            current = unit.tx.load_instances(instance_ids=expired_ids)
            dead = [item for item in current if item.lease_expires_at <= unit.now]
            held = unit.instance_tasks([item.instance_id for item in dead])
            forgotten = [item.instance_id for item in dead if _is_forgotten(item, unit.now)]
            if forgotten:
                unit.tx.delete_instances(forgotten)
            return [unit.apply(lifecycle.lose(task, at=unit.now)) for task in held]

        for task in await self._writer.write(Command(run)):
            logger.warning(
                "task %s lost its instance; it is %s now, attempt %d",
                task.task_id,
                task.status.value,
                task.attempt,
                extra={"action": "lease_ended", "task_id": task.task_id},
            )

    async def _dispatch_again(self, tasks: Sequence[TaskRecord]) -> None:
        if not tasks:
            return

        def run(unit: Unit) -> None:
            for task in tasks:
                known = unit.find_task(task.task_id)
                if known is not None:
                    unit.apply(lifecycle.dispatch_again(known))

        logger.info(
            "%d unclaimed tasks go to the queue again", len(tasks), extra={"action": "dispatch_again"}
        )
        await self._writer.write(Command(run, tasks=tuple(task.task_id for task in tasks)))


def _is_forgotten(instance: InstanceRecord, now: datetime) -> bool:
    return (now - instance.lease_expires_at).total_seconds() > _FORGET_INSTANCE_SECONDS
