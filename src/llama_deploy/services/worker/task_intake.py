"""Takes messages from the topics of an instance: tasks, events and cancellations."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

from llama_deploy.errors import InvalidRequestError, LlamaDeployError, OverloadedError
from llama_deploy.message_queues.base import AbstractMessageQueue, Consumer, Delivery
from llama_deploy.message_queues.consumer_loop import ConsumerLoop
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.background import run_to_completion
from llama_deploy.services.worker.attempt import Attempt
from llama_deploy.services.worker.claims import Claims
from llama_deploy.services.worker.held_attempts import HeldAttempts
from llama_deploy.services.worker.message_data import parse_data
from llama_deploy.services.worker.work_slots import WorkSlots
from llama_deploy.types.instance_protocol import ClaimReply, InboxEntry, TaskCancellation, TaskDispatch

logger = logging.getLogger(__name__)

A = TypeVar("A", bound=Attempt)

INSTANCE_TOPIC_EXPIRES: Final = 600.0
"""Seconds after which the queue may delete the topic of an instance that is gone."""
_INSTANCE_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class TaskIntake(Generic[A]):
    """Takes tasks from the service's work topic, and what concerns them from the instance's own topic."""

    service_name: str
    """The service, for errors and the log."""
    queue: AbstractMessageQueue
    claims: Claims
    attempts: HeldAttempts[A]
    slots: WorkSlots
    new_attempt: Callable[[QueueMessage, TaskDispatch, ClaimReply], A]
    """Creates the attempt of a message that was claimed."""
    work: Callable[[A], Awaitable[None]]
    """Executes an attempt."""
    others: Consumer | None = None
    """Processes messages of the work topic that offer no task. None: they are dropped."""

    async def take_tasks(self, topic: str) -> None:
        """Take tasks from a topic while there are free slots, and run them; until cancelled."""
        async with await self.queue.subscribe(topic) as subscription:
            take = self._take
            if self.others is not None:
                others = ConsumerLoop(subscription, self.others, concurrency=1, raise_exceptions=False)
                take = partial(self._take_any, others)
            while True:
                await self.slots.wait_for_free()
                for delivery in await subscription.receive(self.slots.free):
                    if self.slots.free > 0:
                        self.slots.tasks.spawn(take(delivery))
                    else:  # since this waited: one task needs the process, or another topic had one
                        await delivery.nack()

    async def take_one(self, topic: str, *, seconds: float, on_claimed: Callable[[A], None]) -> bool:
        """Take one task from a topic and begin to run it. False: there was none for so long.

        Attempts that are not available, or that this instance cannot run, are passed over.

        Args:
            topic: The topic.
            seconds: How long to wait for a task.
            on_claimed: Called with the attempt.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + seconds

        async def begin(delivery: Delivery) -> bool:
            if (attempt := await self._claim_delivery(delivery)) is None:
                return False
            on_claimed(attempt)
            self.slots.tasks.spawn(self._execute(attempt))
            return True

        async with await self.queue.subscribe(topic) as subscription:
            while loop.time() < give_up_at:
                try:
                    async with asyncio.timeout_at(give_up_at):
                        deliveries = await subscription.receive(1)
                except TimeoutError:
                    break
                for delivery in deliveries:
                    # If a claim is given up that was granted, the task waits for the end of the lease.
                    if await run_to_completion(begin(delivery)):
                        return True
        return False

    async def take_instance_messages(self, topic: str, *, offer: Callable[[QueueMessage], None]) -> None:
        """Take events and cancellations, which must not wait behind tasks; until cancelled.

        Args:
            topic: The topic of the instance.
            offer: Keeps a task that only certain instances can run, see `OfferedTasks.add`.
        """
        async with await self.queue.subscribe(topic, expires_after=INSTANCE_TOPIC_EXPIRES) as subscription:
            while True:
                for delivery in await subscription.receive(_INSTANCE_BATCH):
                    try:
                        if delivery.message.action is ActionTypes.NEW_TASK:
                            offer(delivery.message)
                        else:
                            await self.accept(delivery.message)
                    except LlamaDeployError as exc:
                        self._log_dropped(delivery.message, exc)
                    # What is lost here comes again with the answer to the next heartbeat.
                    await delivery.ack()

    async def accept(self, message: QueueMessage) -> None:
        """Begin a task, or pass an event or a cancellation to a running one.

        Returns when the task is claimed; it then runs in the background.

        Raises:
            InvalidRequestError: The message is not for an instance of a service.
            OverloadedError: There is no free slot.
            UnavailableError: The control plane does not answer.
        """
        if message.action is ActionTypes.SEND_EVENT:
            await self.attempts.deliver([parse_data(InboxEntry, message)])
        elif message.action is ActionTypes.CANCEL_TASK:
            self.attempts.cancel(parse_data(TaskCancellation, message))
        elif message.action is ActionTypes.NEW_TASK:
            if self.slots.free <= 0:
                raise OverloadedError(f"service {self.service_name!r} has no free slot; try again later")
            attempt = await self._claim(message)
            if attempt is not None:
                self.slots.tasks.spawn(self._execute(attempt))
        else:
            raise InvalidRequestError(f"an instance does not accept {message.action} messages")

    async def take_offered(self, message: QueueMessage) -> None:
        """Claim the attempt that a message on the instance's own topic offers, and run it."""
        try:
            attempt = await self._claim(message)
        except LlamaDeployError as exc:
            self._log_dropped(message, exc)
            return
        if attempt is not None:
            await self._execute(attempt)

    async def _take_any(self, others: ConsumerLoop, delivery: Delivery) -> None:
        """Take a delivery, which need not offer a task."""
        if delivery.message.action is ActionTypes.NEW_TASK:
            await self._take(delivery)
        else:
            await others.process(delivery)

    async def _take(self, delivery: Delivery) -> None:
        """Claim the attempt that a delivery offers, and run it."""
        attempt = await self._claim_delivery(delivery)
        if attempt is not None:
            await self._execute(attempt)

    async def _claim_delivery(self, delivery: Delivery) -> A | None:
        """Claim the attempt that a delivery offers. The answer settles the delivery. None: not available."""
        try:
            attempt = await self._claim(delivery.message)
        except InvalidRequestError as exc:
            self._log_dropped(delivery.message, exc)
            await delivery.ack()
            return None
        except LlamaDeployError as exc:
            logger.warning(
                "message %s is returned to the queue: %s",
                delivery.message.id_,
                exc,
                extra={"action": "nack", "message_id": delivery.message.id_},
            )
            await delivery.nack()
            return None
        await delivery.ack()
        return attempt

    async def _claim(self, message: QueueMessage) -> A | None:
        """Ask for the attempt that a message offers. None: it is not available."""
        if message.action is not ActionTypes.NEW_TASK:
            raise InvalidRequestError(f"the work topic does not carry {message.action} messages")
        dispatch = parse_data(TaskDispatch, message)
        attempt = await self.claims.claim(dispatch, partial(self.new_attempt, message, dispatch))
        if attempt is not None:
            self.attempts.add(attempt)
        return attempt

    async def _execute(self, attempt: A) -> None:
        try:
            await self.work(attempt)
        finally:
            self.attempts.remove(attempt)
            self.slots.on_working(attempt)
            await attempt.close()

    def _log_dropped(self, message: QueueMessage, exc: LlamaDeployError) -> None:
        logger.warning(
            "service %s dropped message %s: %s",
            self.service_name,
            message.id_,
            exc,
            extra={"action": "drop_message", "message_id": message.id_},
        )
