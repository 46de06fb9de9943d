"""The work of one instance: it claims tasks, keeps its leases, and drains when it is stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from llama_deploy.errors import InvalidRequestError, LlamaDeployError, OverloadedError
from llama_deploy.message_queues.base import AbstractMessageQueue, Delivery
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.closing import to_the_end
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.run.endings import Ending
from llama_deploy.services.worker.attempt import Attempt, WorkflowState, publish_again
from llama_deploy.services.worker.claims import Claims, NewMailbox
from llama_deploy.services.worker.heartbeat import BEATS_PER_LEASE, HeartbeatThread
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.types import TaskStatus
from llama_deploy.types.instance_protocol import (
    AttemptOutcome,
    Heartbeat,
    HeartbeatReply,
    InboxEntry,
    ReleaseRequest,
    TaskCancellation,
    TaskDispatch,
)
from llama_deploy.types.services import Registration
from llama_deploy.types.topics import Topics
from llama_deploy.types.validation import describe_validation_error

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

INSTANCE_TOPIC_EXPIRES: Final = 600.0
"""Seconds after which the queue may drop the topic of an instance that is gone."""
_INSTANCE_BATCH: Final = 64
_HAND_BACK_SECONDS: Final = 5.0
"""How long handing back what is not finished may take when the instance stops."""
_CONFIRM_EVERY: Final = 500
"""After so many outcomes a heartbeat asks for their confirmation at once, so that few need to be kept."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Who the instance is, and how it works."""

    service_name: str
    instance_id: str
    registration: Registration
    max_concurrent_tasks: int
    drain_timeout: float
    """Seconds that running tasks may take to end when the instance stops."""
    blocked_limit: float
    """Seconds after which heartbeats stop while the event loop is blocked."""
    raise_exceptions: bool
    """Whether a failed task ends `run` with its exception."""
    keeps_journals: bool
    """Whether runs are written down step by step."""


class Worker:
    """Works on the tasks of a service while `run` runs.

    Args:
        settings: See `WorkerSettings`.
        queue: Brings tasks, events and cancellations.
        gateway: The way to the control plane.
        process: Runs a claimed attempt and reports its end.
        new_mailbox: Makes the mailbox of a task; its argument notes what has arrived.
        publish: Hands a report to the queue; returns when it has it, raises when it refuses it for good.
        register: Registers the instance again.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        queue: AbstractMessageQueue,
        gateway: ControlPlaneGateway,
        process: Callable[[WorkflowState], Awaitable[None]],
        new_mailbox: NewMailbox,
        publish: Callable[[QueueMessage], Awaitable[None]],
        register: Callable[[], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._gateway = gateway
        self._process = process
        self._publish = publish
        self._register = register
        self._topics = Topics(settings.registration.topic_namespace)
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._busy: set[asyncio.Task[None]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._publishing_again: set[tuple[str, int]] = set()
        """Outcomes that the queue takes its time to take, or refuses for now."""
        self._room = asyncio.Event()
        self._answered = asyncio.Event()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopped = False
        self._draining = False
        self.ledger = Ledger()
        self._claims = Claims(
            instance_id=settings.instance_id,
            gateway=gateway,
            ledger=self.ledger,
            new_mailbox=new_mailbox,
            publish=publish,
            keeps_journals=settings.keeps_journals,
        )
        self._heartbeat = HeartbeatThread(
            beat=gateway.beat,
            compose=self._compose_heartbeat,
            on_reply=self._on_heartbeat_reply,
            lease_seconds=settings.registration.lease_seconds,
            blocked_limit=settings.blocked_limit,
            name=settings.service_name,
        )

    def __len__(self) -> int:
        """Return how many attempts are under way."""
        return len(self._attempts)

    def find(self, task_id: str | None, attempt: int) -> Attempt:
        """Return an attempt that is under way.

        Raises:
            InvalidRequestError: There is no such attempt.
        """
        found = self._attempts.get((task_id or "", attempt))
        if found is None:
            raise InvalidRequestError(
                f"attempt {attempt} of task {task_id!r} was not claimed by this instance"
            )
        return found

    async def run(self) -> None:
        """Work until cancelled, then drain. A second cancellation hands everything back at once.

        Raises:
            UnavailableError: The queue was closed.
            Exception: What a task raised, if `raise_exceptions` is set.
        """
        self._heartbeat.start()
        name = self._settings.service_name
        events = asyncio.create_task(self._read_instance_topic(), name=f"events of {name}")
        work = asyncio.create_task(self.manage_tasks(), name=f"work of {name}")
        try:
            await asyncio.wait({events, work, self._failure}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._stop(work, events)
        for part in (self._failure, work, events):
            if part.done() and not part.cancelled():
                part.result()

    async def manage_tasks(self) -> None:
        """Take tasks from the queue, never more than there is room for, and run them; until cancelled."""
        topic = self._topics.work(self._settings.service_name)
        async with await self._queue.subscribe(topic) as subscription:
            while True:
                while self._free_slots <= 0:
                    self._room.clear()
                    if self.ledger.is_full:
                        self._heartbeat.hurry()
                    self._let_leave()
                    await self._room.wait()
                for delivery in await subscription.receive(self._free_slots):
                    self._spawn(self._take_work(delivery), self._busy)

    async def accept(self, message: QueueMessage) -> None:
        """Begin a task, or hand an event or a cancellation to a running one.

        Returns when the task is claimed; it then runs in the background.

        Raises:
            InvalidRequestError: A message that no instance takes.
            OverloadedError: As many tasks are running as may.
            UnavailableError: The control plane does not answer.
        """
        if message.action is ActionTypes.SEND_EVENT:
            await self._take_events([_parse(InboxEntry, message)])
        elif message.action is ActionTypes.CANCEL_TASK:
            self._take_cancellation(_parse(TaskCancellation, message))
        elif message.action is ActionTypes.NEW_TASK:
            if self._free_slots <= 0:
                raise OverloadedError(
                    f"service {self._settings.service_name!r} works on as many tasks as it may"
                )
            attempt = await self._claim(message)
            if attempt is not None:
                self._spawn(self._work(attempt), self._busy)
        else:
            raise InvalidRequestError(f"a workflow service takes no {message.action} messages")

    async def report(self, attempt: Attempt, ending: Ending, session_state: dict[str, Any] | None) -> None:
        """Publish how an attempt ended, and keep that until the control plane has confirmed it."""
        try:
            outcome = await attempt.report(ending, session_state, self._publish)
        except LlamaDeployError:
            logger.exception(
                "the end of task %s cannot be reported; it will be tried again elsewhere",
                attempt.key.task_id,
                extra={"action": "report_failed", "task_id": attempt.key.task_id},
            )
            self.ledger.drop(attempt.key.task_id, attempt.key.attempt)
            return
        # One heartbeat may have been under way, and the queue takes its time.
        patience = 2 * self._settings.registration.lease_seconds / BEATS_PER_LEASE
        self.ledger.finish(outcome, size=ending.size, now=time.monotonic(), patience=patience)
        if self.ledger.unconfirmed % _CONFIRM_EVERY == 0:
            self._heartbeat.hurry()
        if ending.cause is not None and ending.status in (TaskStatus.FAILED, TaskStatus.TIMED_OUT):
            self._surface(attempt, ending.cause)

    def forget(self, attempt: Attempt) -> None:
        """Hold an attempt no more that has nothing to report."""
        self.ledger.drop(attempt.key.task_id, attempt.key.attempt)

    async def hold_lease(self) -> None:
        """Wait until the control plane has answered within the lease, if it has not.

        This process may have stood still, and others may have its tasks.
        """
        while time.monotonic() - self._heartbeat.answered_at > self._settings.registration.lease_seconds:
            self._answered.clear()
            self._heartbeat.hurry()
            await self._answered.wait()

    def on_waiting(self) -> None:
        """A run has begun to wait for something from outside."""
        if self._draining:
            self._let_leave()
        self._room.set()

    def _let_leave(self) -> None:
        """Let the runs leave memory that only wait; others need their slots."""
        for attempt in self._attempts.values():
            if attempt.run is not None:
                attempt.run.leave()

    def _surface(self, attempt: Attempt, cause: BaseException) -> None:
        logger.warning(
            "task %s of service %s failed: %s: %s",
            attempt.key.task_id,
            self._settings.service_name,
            type(cause).__name__,
            cause,
            extra={"action": "task_failed", "task_id": attempt.key.task_id},
        )
        if self._settings.raise_exceptions and not self._failure.done():
            self._failure.set_exception(cause)

    @property
    def _free_slots(self) -> int:
        return 0 if self.ledger.is_full else self._settings.max_concurrent_tasks - len(self._busy)

    def _spawn(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._room.set()
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error(
                "service %s failed at a message",
                self._settings.service_name,
                exc_info=exc,
                extra={"action": "fault"},
            )

    async def _take_work(self, delivery: Delivery) -> None:
        """Claim what a delivery offers and run it; it is settled as soon as the claim is decided."""
        try:
            attempt = await self._claim(delivery.message)
        except InvalidRequestError as exc:
            self._log_bad_message(delivery.message, exc)
            await delivery.ack()
            return
        except LlamaDeployError as exc:
            logger.warning(
                "message %s goes back: %s",
                delivery.message.id_,
                exc,
                extra={"action": "nack", "message_id": delivery.message.id_},
            )
            await delivery.nack()
            return
        await delivery.ack()
        if attempt is not None:
            await self._work(attempt)

    async def _claim(self, message: QueueMessage) -> Attempt | None:
        """Ask for the attempt that a message offers; None if it is not to be had."""
        if message.action is not ActionTypes.NEW_TASK:
            raise InvalidRequestError(f"the work topic carries no {message.action} messages")
        dispatch = _parse(TaskDispatch, message)
        attempt = await self._claims.claim(dispatch)
        if attempt is not None:
            for earlier in self._attempts.values():
                if earlier.key.task_id == dispatch.task_id:
                    earlier.abandon()
            self._attempts[dispatch.task_id, dispatch.attempt] = attempt
        return attempt

    async def _work(self, attempt: Attempt) -> None:
        try:
            await self._process(attempt.state)
        finally:
            self._attempts.pop((attempt.key.task_id, attempt.key.attempt), None)
            await attempt.reports.close()

    async def _take_events(self, entries: list[InboxEntry]) -> None:
        for entry in entries:
            for attempt in list(self._attempts.values()):
                if attempt.key.task_id == entry.task_id:
                    await attempt.put(entry)

    def _take_cancellation(self, cancellation: TaskCancellation) -> None:
        attempt = self._attempts.get((cancellation.task_id, cancellation.attempt))
        if attempt is not None:
            attempt.cancel()

    async def _read_instance_topic(self) -> None:
        """Take events and cancellations; they never wait behind work."""
        topic = self._topics.instance(self._settings.service_name, self._settings.instance_id)
        async with await self._queue.subscribe(topic, expires_after=INSTANCE_TOPIC_EXPIRES) as subscription:
            while True:
                for delivery in await subscription.receive(_INSTANCE_BATCH):
                    try:
                        await self.accept(delivery.message)
                    except LlamaDeployError as exc:
                        self._log_bad_message(delivery.message, exc)
                    # What is lost here, the next heartbeat's answer brings again.
                    await delivery.ack()

    def _log_bad_message(self, message: QueueMessage, exc: LlamaDeployError) -> None:
        logger.warning(
            "service %s dropped message %s: %s",
            self._settings.service_name,
            message.id_,
            exc,
            extra={"action": "drop_message", "message_id": message.id_},
        )

    def _compose_heartbeat(self, heard_at: datetime | None) -> Heartbeat:
        held, claiming = self.ledger.snapshot()
        return Heartbeat(
            instance_id=self._settings.instance_id,
            held=held,
            claiming=claiming,
            heard_at=heard_at,
            slots=self._settings.max_concurrent_tasks,
            running=len(self),
            blocked_seconds=self._heartbeat.blocked_seconds,
        )

    def _on_heartbeat_reply(self, reply: HeartbeatReply) -> None:
        if self._stopped:
            return
        if not reply.known:
            self._spawn(self._register_again(), self._background)
        for held in reply.stale:
            self.ledger.drop(held.task_id, held.attempt)
            attempt = self._attempts.get((held.task_id, held.attempt))
            if attempt is not None:
                attempt.abandon()
        for cancellation in reply.cancelled:
            self._take_cancellation(cancellation)
        if reply.inbox:
            self._spawn(self._take_events(reply.inbox), self._background)
        for outcome in self.ledger.overdue(time.monotonic()):
            if (outcome.task_id, outcome.attempt) not in self._publishing_again:
                self._spawn(self._publish_again(outcome), self._background)
        self._answered.set()
        self._room.set()

    async def _publish_again(self, outcome: AttemptOutcome) -> None:
        key = outcome.task_id, outcome.attempt
        self._publishing_again.add(key)
        try:
            await publish_again(outcome, self._publish)
        finally:
            self._publishing_again.discard(key)

    async def _register_again(self) -> None:
        try:
            await self._register()
        except LlamaDeployError as exc:
            logger.warning(
                "service %s is not known to the control plane and could not register: %s",
                self._settings.service_name,
                exc,
                extra={"action": "register_failed", "service_name": self._settings.service_name},
            )

    async def _stop(self, work: asyncio.Task[None], events: asyncio.Task[None]) -> None:
        """Drain: let end what is running, hand back the rest."""
        work.cancel()
        hurried = False
        try:
            await asyncio.wait({work})
            await self._wait_for_tasks()
        except asyncio.CancelledError:
            hurried = True
        await to_the_end(self._finish(work, events))
        if hurried:
            raise asyncio.CancelledError

    async def _finish(self, work: asyncio.Task[None], events: asyncio.Task[None]) -> None:
        """Hand back what is still running, wait until the rest is confirmed, and stop everything."""
        events.cancel()
        try:
            async with asyncio.timeout(_HAND_BACK_SECONDS):
                await self._hand_back()
                await asyncio.wait({work, events})
                await self._until_confirmed()
        except TimeoutError:
            logger.warning(
                "service %s left attempts that the control plane has not confirmed; their leases will end",
                self._settings.service_name,
                extra={"action": "hand_back_timeout"},
            )
        self._stopped = True
        await self._heartbeat.close()
        leaving = {*self._busy, *self._background}
        for task in leaving:
            task.cancel()
        if leaving:
            await asyncio.wait(leaving, timeout=_HAND_BACK_SECONDS)

    async def _until_confirmed(self) -> None:
        """Wait until the control plane has every outcome: nobody would publish it again."""
        while self.ledger.unconfirmed:
            self._room.clear()
            self._heartbeat.hurry()
            await self._room.wait()

    async def _wait_for_tasks(self) -> None:
        if not self._busy:
            return
        self._draining = True
        self._let_leave()
        logger.info(
            "service %s drains: %d tasks have %.0f s to end",
            self._settings.service_name,
            len(self._busy),
            self._settings.drain_timeout,
            extra={"action": "drain", "service_name": self._settings.service_name},
        )
        await asyncio.wait(set(self._busy), timeout=self._settings.drain_timeout)

    async def _hand_back(self) -> None:
        """Give what is still running to other instances."""
        attempts = list(self._attempts.values())
        await asyncio.gather(*(attempt.write_down() for attempt in attempts))
        for attempt in attempts:
            attempt.abandon()
            self.ledger.drop(attempt.key.task_id, attempt.key.attempt)
        requests = [
            ReleaseRequest(task_id=item.key.task_id, attempt=item.key.attempt, token=item.key.token)
            for item in attempts
        ]
        answers = await asyncio.gather(
            *(self._gateway.release(request) for request in requests), return_exceptions=True
        )
        for request, answer in zip(requests, answers, strict=True):
            extra = {"action": "hand_back", "task_id": request.task_id}
            if isinstance(answer, BaseException):
                logger.warning(
                    "could not hand back task %s, which moves on when the lease ends: %s",
                    request.task_id,
                    answer,
                    extra=extra,
                )
            else:
                logger.info("handed back task %s: %s", request.task_id, answer.outcome, extra=extra)


def _parse(model: type[M], message: QueueMessage) -> M:
    try:
        return model.model_validate(message.data)
    except ValidationError as exc:
        raise InvalidRequestError(f"malformed {message.action}: {describe_validation_error(exc)}") from exc
