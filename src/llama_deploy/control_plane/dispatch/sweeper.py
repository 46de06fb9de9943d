"""What happens without a request: messages leave the outbox, leases end, timers of parked runs are due."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.backoff import Backoff
from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.lifecycle import Transition
from llama_deploy.control_plane.storage.unit import Outgoing, Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.errors import LlamaDeployError
from llama_deploy.message_queues.base import (
    AbstractMessageQueue,
    PublishCallback,
    is_refused_for_good,
)
from llama_deploy.messages import QueueMessage
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import InstanceRecord, TaskRecord
from llama_deploy.types import TaskStatus

logger = logging.getLogger(__name__)

_PUBLISH_AT_ONCE: Final = 256
_RETRY: Final = Backoff(first=0.1, longest=5.0)
_PAGE: Final = 500
_MOST_AT_START: Final = 100_000
"""The most attempts that are handed to the queue again at the start; the sweeps find the others."""
_MOST_HASTENED: Final = 2
"""An attempt that was handed to the queue more often has its own pace."""
_BUNCH: Final = timedelta(seconds=0.25)
"""The shortest pause between two sweeps that have found less than a page."""
_FORGET_INSTANCE_SECONDS: Final = 60.0
"""How long an instance whose lease has ended stays listed."""
_LATE_SECONDS: Final = 1.0
"""A sweep that starts so late says that this process stood still, and that it may have missed heartbeats."""
_HEARING_SECONDS: Final = 0.25
"""How long heartbeats that are on their way may take to be stored, with a short lease an eighth of it."""
_MOST_HEARINGS: Final = 8
"""How often they get that time again, because this process was slow in it."""


class OutboxRelay:
    """Hands stored messages to the queue, in order for each topic, until it has them.

    What is no fault of the message itself is waited out, such as a broker that refuses the credentials.

    Args:
        queue: The message queue.
        on_sent: Told the ids of messages that the queue has, or has refused for good.
        on_refused: Told of a message that the queue refuses for good, and why.
        publish_callback: Called with each message that the queue has.
    """

    def __init__(
        self,
        queue: AbstractMessageQueue,
        *,
        on_sent: Callable[[Sequence[str]], None],
        on_refused: Callable[[QueueMessage, LlamaDeployError], Awaitable[None]],
        publish_callback: PublishCallback | None = None,
    ) -> None:
        self._queue = queue
        self._publish_callback = publish_callback
        self._on_sent = on_sent
        self._on_refused = on_refused
        self._waiting: dict[str, deque[QueueMessage]] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._in_hand: set[str] = set()

    @property
    def backlog(self) -> int:
        """How many messages wait."""
        return len(self._in_hand)

    def send(self, outgoing: Sequence[Outgoing]) -> None:
        """Hand in messages that are stored in the outbox; one that waits here already is left out."""
        for item in outgoing:
            if item.message.id_ in self._in_hand:
                continue
            self._in_hand.add(item.message.id_)
            self._waiting.setdefault(item.topic, deque()).append(item.message)
            if item.topic not in self._workers:
                worker = asyncio.create_task(self._relay(item.topic), name=f"outbox-{item.topic}")
                worker.add_done_callback(self._on_worker_done)
                self._workers[item.topic] = worker

    def is_waiting(self, topic: str) -> bool:
        """Whether messages for a topic wait here."""
        return topic in self._waiting

    async def run(self) -> None:
        """Wait until something fails that should not, and raise it. Cancel it to stop waiting."""
        await asyncio.shield(self._failure)

    async def close(self) -> None:
        """Stop; what was not sent stays in the outbox. Idempotent."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        self._failure.cancel()

    def _on_worker_done(self, worker: asyncio.Task[None]) -> None:
        if not worker.cancelled() and (exc := worker.exception()) and not self._failure.done():
            self._failure.set_exception(exc)

    async def _relay(self, topic: str) -> None:
        waiting = self._waiting[topic]
        failures = 0
        while waiting:
            batch = [waiting.popleft() for _ in range(min(len(waiting), _PUBLISH_AT_ONCE))]
            outcomes = await asyncio.gather(
                *(self._queue.publish(message, topic, self._publish_callback) for message in batch),
                return_exceptions=True,
            )
            unsent, error = await self._settle(batch, outcomes)
            if error is None:
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
                    error,
                    extra={"action": "queue_lost"},
                )
            await asyncio.sleep(_RETRY.delay(failures))
        del self._workers[topic], self._waiting[topic]

    async def _settle(
        self, batch: Sequence[QueueMessage], outcomes: Sequence[BaseException | None]
    ) -> tuple[list[QueueMessage], BaseException | None]:
        """Return the messages to try again, and why."""
        done: list[str] = []
        unsent: list[QueueMessage] = []
        last: BaseException | None = None
        for message, outcome in zip(batch, outcomes, strict=True):
            error = await self._give_up(message, outcome) if is_refused_for_good(outcome) else outcome
            if error is None:
                done.append(message.id_)
            else:
                unsent.append(message)
                last = error
        self._in_hand.difference_update(done)
        self._on_sent(done)
        return unsent, last

    async def _give_up(self, message: QueueMessage, error: LlamaDeployError) -> LlamaDeployError | None:
        """Tell that a message is refused for good; return why that has to be tried again."""
        try:
            await self._on_refused(message, error)
        except LlamaDeployError as exc:
            return exc
        return None


@dataclass(frozen=True, slots=True)
class _Due:
    """What a sweep finds."""

    instances: list[InstanceRecord]
    unclaimed: list[TaskRecord]
    """Queued tasks that are to be handed to the queue again."""
    sleeping: list[TaskRecord]
    """Parked tasks whose timer is due."""
    next_timer: datetime | None
    """When the first timer of all is due, None without one."""
    next_unclaimed: datetime | None
    """When the first queued task is to be handed to the queue (again), None without one."""

    @classmethod
    def read(cls, tx: StoreTransaction, now: datetime) -> _Due:
        first = tx.tasks.sleeping(limit=1)
        unclaimed = tx.tasks.queued(limit=1)
        return cls(
            instances=tx.instances.load(),
            unclaimed=tx.tasks.queued(due_before=now, limit=_PAGE) if unclaimed else [],
            sleeping=tx.tasks.sleeping(due_before=now, limit=_PAGE) if first else [],
            next_timer=first[0].wake_at if first else None,
            next_unclaimed=unclaimed[0].redispatch_at if unclaimed else None,
        )

    @property
    def is_cut(self) -> bool:
        """Whether more may be due than was read."""
        return _PAGE in {len(self.sleeping), len(self.unclaimed)}


class Sweeper:
    """Moves tasks on whose instance has fallen silent or whose timer is due, and repeats unclaimed messages.

    It sleeps until a lease can end, or a timer or an attempt can be due, at most `redispatch_seconds`.

    Args:
        store: What is looked at.
        writer: How it is changed.
        clock: Returns the present time, aware, UTC.
        lease_seconds: How long an instance may be silent.
        redispatch_seconds: After how long an unclaimed attempt is handed to the queue again.
        is_waiting: Whether messages for a service wait to be handed to the queue, and need no repeating.
    """

    def __init__(
        self,
        *,
        store: StateStore,
        writer: Writer,
        clock: Callable[[], datetime],
        lease_seconds: float,
        redispatch_seconds: float,
        is_waiting: Callable[[str], bool],
    ) -> None:
        self._is_waiting = is_waiting
        self._store = store
        self._writer = writer
        self._clock = clock
        self._lease = timedelta(seconds=lease_seconds)
        self._redispatch = timedelta(seconds=redispatch_seconds)
        self._woken = asyncio.Event()
        self._until: datetime | None = None
        """When it looks again by itself; None while it looks."""
        self._unheard = False
        """Whether heartbeats may have gone unheard, so that no lease may be held against an instance."""
        self._dead: set[str] = set()
        """The instances that the last sweep has found dead."""

    def wake(self, due: datetime | None = None) -> None:
        """Something has a time limit now, at `due` if that is known: look before it is over."""
        if due is None or self._until is None or due < self._until:
            self._woken.set()

    def distrust(self) -> None:
        """The database was lost, perhaps to all: renew the leases before any of them counts as ended."""
        self._unheard = True
        self._woken.set()

    async def run(self) -> None:
        """Sweep until cancelled. Errors of the store are logged and the sweep is tried again."""
        while True:
            self._woken.clear()  # before the sweep looks, so that nothing new falls between
            self._until = None
            try:
                unheard, self._unheard = self._unheard, False
                if unheard or self._store_has_failed():
                    await self.renew_leases()
                pause = await self._sweep()
            except LlamaDeployError as exc:
                logger.warning("sweep failed, it is tried again: %s", exc, extra={"action": "sweep"})
                self._unheard = True
                pause = min(self._lease, timedelta(seconds=1))
            self._unheard = await self._sleep(pause) or self._unheard

    def _store_has_failed(self) -> bool:
        """Whether heartbeats could not be stored lately, so that leases end that should not."""
        failed_at = self._writer.failed_at
        return failed_at is not None and self._clock() - failed_at <= self._lease

    async def _sleep(self, pause: timedelta) -> bool:
        """Sleep until the pause is over or something is new; return whether this process stood still."""
        due = self._until = self._clock() + pause
        with suppress(TimeoutError):
            async with asyncio.timeout(pause.total_seconds()):
                await self._woken.wait()
        if (self._clock() - due).total_seconds() <= _LATE_SECONDS:
            return False
        logger.warning("this process stood still; leases are renewed", extra={"action": "renew_leases"})
        return True

    async def renew_leases(self) -> None:
        """Give every instance a fresh lease, because its heartbeats could not have been heard."""
        until = self._clock() + self._lease

        def renew(tx: StoreTransaction) -> None:
            found = tx.instances.load()
            tx.instances.put(
                [replace(item, lease_expires_at=until) for item in found if item.lease_expires_at < until]
            )

        if await self._store.read(lambda tx: tx.instances.load()):
            # Not with the writer's transactions, which may have locked sessions before the instances.
            await self._store.transact(renew)

    async def dispatch_queued(self) -> None:
        """Hand every queued attempt to the queue again: it has lost all its messages."""
        queued = await self._store.read(lambda tx: tx.tasks.queued(limit=_MOST_AT_START))
        tasks = [task for task in queued if not lifecycle.is_held_back(task)]
        for start in range(0, len(tasks), _PAGE):
            await self._dispatch_again(tasks[start : start + _PAGE], due_only=False)

    async def _sweep(self) -> timedelta:
        """Do what is due, and return how long nothing else can be."""
        now = self._clock()

        due = await self._store.read(lambda tx: _Due.read(tx, now))
        await self._dispatch_again(due.unclaimed)
        await self._wake_runs(due.sleeping)
        silent = [item for item in due.instances if item.lease_expires_at <= now]
        await self._expire(silent)
        await self._hasten({item.service_name for item in silent})
        if due.is_cut or len(self._dead) < len(silent):
            return timedelta()
        alive = [item for item in due.instances if item.lease_expires_at > now]
        now = self._clock()  # hearing takes its time
        leases = [item.lease_expires_at - now for item in alive]
        timers = []
        if due.next_timer is not None:
            # What is still due is another control plane's now.
            timers.append(due.next_timer - now if due.next_timer > now else _BUNCH)
        if due.next_unclaimed is not None:
            # In bunches, for many may be due one shortly after the other.
            timers.append(max(due.next_unclaimed - now, _BUNCH))
        return max(min([*leases, *timers, self._redispatch]), timedelta())

    async def _hear(self) -> None:
        """Let the heartbeats be stored that are on their way.

        This process, or the whole machine, may have stood still until just now, and may do so again.
        """
        loop = asyncio.get_running_loop()
        seconds = min(_HEARING_SECONDS, self._lease.total_seconds() / 8)
        for _ in range(_MOST_HEARINGS):
            begun = loop.time()
            await asyncio.sleep(seconds)
            await self._writer.catch_up()
            if loop.time() - begun < 2 * seconds:
                return

    async def _expire(self, instances: Sequence[InstanceRecord]) -> None:
        """Move the tasks on of those instances that are still silent when all heartbeats were heard."""
        expired_ids = {instance.instance_id for instance in instances}
        if not expired_ids <= self._dead:
            await self._hear()
        self._dead = set()
        self._unheard = self._unheard or self._store_has_failed()
        if not expired_ids or self._unheard:  # what was lost meanwhile may have been heartbeats
            return

        def run(unit: Unit) -> tuple[set[str], list[TaskRecord]]:
            current = unit.tx.instances.load(instance_ids=expired_ids)
            dead = [item for item in current if item.lease_expires_at <= unit.now]
            held = unit.instance_tasks([item.instance_id for item in dead])
            forgotten = [item.instance_id for item in dead if _is_forgotten(item, unit.now)]
            if forgotten:
                unit.tx.instances.delete(forgotten)
            return {item.instance_id for item in dead}, [unit.lose(task) for task in held]

        self._dead, lost = await self._writer.write(Command(run, instances=tuple(expired_ids)))
        for task in lost:
            logger.warning(
                "task %s lost its instance, the %d. of at most %d; it is %s now, attempt %d%s",
                task.task_id,
                task.losses,
                task.max_attempts,
                task.status.value,
                task.attempt,
                " after a pause" if lifecycle.is_held_back(task) else "",
                extra={"action": "lease_ended", "task_id": task.task_id},
            )

    async def _hasten(self, service_names: Collection[str]) -> None:
        """Hand the attempts of services soon to the queue again that have a silent instance.

        It may only stand still, and the queue may have handed it messages that nobody works on.
        """
        soon = self._clock() + self._lease
        if not service_names:
            return

        def late(task: TaskRecord) -> bool:
            is_late = task.redispatch_at is not None and task.redispatch_at > soon
            return is_late and task.service_name in service_names and 1 <= task.dispatches <= _MOST_HASTENED

        def run(unit: Unit) -> None:
            for each in waiting:
                task = unit.find_task(each.task_id)
                if task is not None and task.status is TaskStatus.QUEUED and late(task):
                    unit.apply(Transition(replace(task, redispatch_at=soon)))

        queued = await self._store.read(lambda tx: tx.tasks.queued(limit=_PAGE))
        waiting = [task for task in queued if late(task)]
        if waiting:
            await self._writer.write(Command(run, tasks=tuple(task.task_id for task in waiting), yields=True))

    async def _wake_runs(self, tasks: Sequence[TaskRecord]) -> None:
        if not tasks:
            return

        def run(unit: Unit) -> int:
            known = [task for task in (unit.find_task(each.task_id) for each in tasks) if task is not None]
            # An event may have woken it, and it may have parked again since.
            due = [task for task in known if task.wake_at is not None and task.wake_at <= unit.now]
            for task in due:
                unit.apply(lifecycle.wake(task))
            return len(due)

        command = Command(run, tasks=tuple(task.task_id for task in tasks), yields=True)
        if count := await self._writer.write(command):
            logger.info("%d parked tasks go on: their timers are due", count, extra={"action": "wake"})

    async def _dispatch_again(self, tasks: Sequence[TaskRecord], *, due_only: bool = True) -> None:
        if not tasks:
            return
        waiting = {task.service_name for task in tasks if self._is_waiting(task.service_name)}

        def run(unit: Unit) -> int:
            known = [task for task in (unit.find_task(each.task_id) for each in tasks) if task is not None]
            if due_only:
                # Another control plane may have handed it to the queue meanwhile.
                known = [item for item in known if item.redispatch_at and item.redispatch_at <= unit.now]
            count = 0
            for task in known:
                if task.service_name in waiting and not lifecycle.is_held_back(task):
                    unit.postpone(task)
                else:
                    unit.apply(lifecycle.dispatch_again(task))
                    count += 1
            return count

        command = Command(run, tasks=tuple(task.task_id for task in tasks), yields=True)
        if count := await self._writer.write(command):
            logger.info("%d unclaimed tasks go to the queue again", count, extra={"action": "dispatch_again"})


def _is_forgotten(instance: InstanceRecord, now: datetime) -> bool:
    return (now - instance.lease_expires_at).total_seconds() > _FORGET_INSTANCE_SECONDS
