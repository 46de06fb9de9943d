"""The worker of one instance: claims tasks, keeps its leases, and drains when it is stopped."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

from llama_deploy.interceptors import AttemptCall, Hooks, WorkerInterceptor, around, hooks_of
from llama_deploy.message_queues.base import AbstractMessageQueue, Consumer
from llama_deploy.messages import QueueMessage
from llama_deploy.running_task import running_task
from llama_deploy.services.background import run_to_completion
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.run.run_outcome import RunOutcome, loggable
from llama_deploy.services.worker.attempt import Attempt
from llama_deploy.services.worker.claims import Claims
from llama_deploy.services.worker.hand_back import hand_back
from llama_deploy.services.worker.held_attempts import HeldAttempts
from llama_deploy.services.worker.lease_keeper import LeaseKeeper
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.services.worker.offered_tasks import OfferedTasks
from llama_deploy.services.worker.outcome_reporter import OutcomeReporter
from llama_deploy.services.worker.suspects import Suspects
from llama_deploy.services.worker.task_intake import TaskIntake
from llama_deploy.services.worker.work_slots import WorkSlots
from llama_deploy.services.worker.worker_metrics import WorkerLoad
from llama_deploy.services.worker.worker_settings import WorkerSettings
from llama_deploy.types import TaskStatus
from llama_deploy.types.instance_protocol import BEATS_PER_LEASE, ClaimReply, HeartbeatReply, TaskDispatch
from llama_deploy.types.keys import public_id
from llama_deploy.types.topics import Topics
from llama_deploy.web.serving_control_plane import ServingControlPlane, serving_control_plane

logger = logging.getLogger(__name__)

A = TypeVar("A", bound=Attempt)

_HAND_BACK_SECONDS: Final = 5.0
"""How long handing back unfinished attempts may take when the instance stops."""
_CONFIRM_EVERY: Final = 500
"""After so many outcomes a heartbeat asks for their confirmation at once, so that few need to be kept."""


class Worker(ABC, Generic[A]):
    """Works on the tasks of a service while `run` runs. A subclass says what an attempt is.

    Args:
        settings: See `WorkerSettings`.
        queue: Brings tasks, events and cancellations.
        gateway: The connection to the control plane.
        publish: Sends a report. Returns when it is accepted, raises when it is rejected permanently.
        register: Registers the instance again.
        others: See `TaskIntake`.
        can_start: See `WorkSlots`.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        queue: AbstractMessageQueue,
        gateway: ControlPlaneGateway,
        publish: Callable[[QueueMessage], Awaitable[None]],
        register: Callable[[], Awaitable[None]],
        others: Consumer | None = None,
        can_start: Callable[[], bool] = lambda: True,
    ) -> None:
        self._settings = settings
        self._gateway = gateway
        self._on_attempt: Hooks[AttemptCall] = hooks_of(settings.interceptors, WorkerInterceptor, "attempt")
        address = gateway.address
        self._serving = None if address is None else ServingControlPlane(address)
        self._topics = Topics(settings.registration.topic_namespace)
        self._is_stopping = False
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.attempts: HeldAttempts[A] = HeldAttempts()
        self.ledger = Ledger()
        self._reporter = OutcomeReporter(
            publish=publish,
            ledger=self.ledger,
            # One heartbeat may be under way, and the queue takes some time.
            patience=2 * settings.registration.lease_seconds / BEATS_PER_LEASE,
        )
        self._lease = LeaseKeeper(
            settings=settings,
            beat=gateway.beat,
            ledger=self.ledger,
            attempts=self.attempts,
            register=register,
            on_reply=self._on_reply,
            is_alone=lambda: settings.alone or self._suspects.has_process,
            steps_back=lambda: self._slots.process.is_reserved,
        )
        self._slots = WorkSlots(
            settings.max_concurrent_tasks,
            ledger=self.ledger,
            attempts=self.attempts,
            confirm=self._lease.beat_now,
            service_name=settings.service_name,
            can_start=can_start,
        )
        self._intake = TaskIntake(
            service_name=settings.service_name,
            queue=queue,
            claims=Claims(
                instance_id=settings.instance_id,
                durability=settings.durability,
                gateway=gateway,
                ledger=self.ledger,
            ),
            attempts=self.attempts,
            slots=self._slots,
            new_attempt=self.new_attempt,
            work=self.work,
            others=others,
        )
        self._offered = OfferedTasks(self._slots, self._intake.take_offered)
        self._suspects = Suspects(
            intake=self._intake,
            slots=self._slots,
            process=self._slots.process,
            topic=self._topics.suspects(settings.service_name),
            service_name=settings.service_name,
        )

    @property
    def problem(self) -> str | None:
        """Why the instance does not work as it should, None if it does. Thread-safe."""
        if self._is_stopping:
            return "it is stopping, and takes no new tasks"
        return self._lease.problem

    @property
    def blocked_seconds(self) -> float:
        """For how many seconds the event loop has been blocked; 0 if it is not. Thread-safe."""
        return self._lease.blocked_seconds

    @property
    def load(self) -> WorkerLoad:
        """How busy it is. Thread-safe."""
        return WorkerLoad(
            slots=self._slots.limit,
            slots_used=self._slots.busy,
            attempts=len(self.attempts),
            held=len(self.ledger),
            unconfirmed=self.ledger.unconfirmed,
            blocked_seconds=self.blocked_seconds,
            loop_lag_seconds=self._lease.loop_lag,
        )

    @abstractmethod
    def new_attempt(self, message: QueueMessage, dispatch: TaskDispatch, reply: ClaimReply) -> A:
        """Return the attempt that a message offered, and that was claimed."""

    @abstractmethod
    async def execute(self, attempt: A) -> tuple[RunOutcome | None, dict[str, Any] | None]:
        """Run an attempt; return its outcome and the changes of the session's state.

        Without an outcome there is nothing to report: the run is parked, or belongs to another instance.
        """

    async def run(self) -> None:
        """Work until cancelled, then drain. A second cancellation hands everything back at once.

        Raises:
            UnavailableError: The queue was closed.
            Exception: What a task raised, if `raise_exceptions` is set.
        """
        self._suspects.open()
        self._lease.start()
        name = self._settings.service_name
        topic = self._topics.instance(name, self._settings.instance_id)
        events = asyncio.create_task(
            self._intake.take_instance_messages(topic, offer=self._offered.add), name=f"events of {name}"
        )
        alone = self._settings.alone
        work = asyncio.create_task(
            self._suspects.run_until_idle() if alone else self.take_work(), name=f"work of {name}"
        )
        offered = asyncio.create_task(self._offered.run(), name=f"offered tasks of {name}")
        in_turn = asyncio.create_task(self._suspects.run_when_asked(), name=f"suspects of {name}")
        parts = (self._failure, work, offered, in_turn, events)
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._is_stopping = True
            try:
                await self._stop({work, offered, in_turn}, events)
            finally:
                self._suspects.close()
        for part in parts:
            if part.done() and not part.cancelled():
                part.result()

    async def take_tasks(self) -> None:
        """Take tasks from the queue while there are free slots, and run them; until cancelled."""
        await self._intake.take_tasks(self._topics.work(self._settings.service_name))

    async def accept(self, message: QueueMessage) -> None:
        """See `TaskIntake.accept`."""
        await self._intake.accept(message)

    async def take_work(self) -> None:
        """Take tasks; `run` calls this."""
        await self.take_tasks()

    async def work(self, attempt: A) -> None:
        """Work on an attempt that was taken."""
        await self.process(attempt)

    async def process(self, attempt: A) -> None:
        """Execute an attempt, and report its outcome."""
        running_task.set(attempt.task)
        serving_control_plane.set(self._serving)
        if self._on_attempt:
            await self._process_in_hooks(attempt)
            return
        outcome, session_state = await self.execute(attempt)
        await self.report(attempt, outcome, session_state)

    async def _process_in_hooks(self, attempt: A) -> None:
        call = AttemptCall(attempt.task, attempt.headers)
        is_over = False
        try:
            with around(self._on_attempt, call):
                try:
                    outcome, session_state = await self.execute(attempt)
                finally:
                    call.is_handed_back = attempt.is_handed_back
                is_over = True
                call.status = _status_of(attempt, outcome)
                await self.report(attempt, outcome, session_state)
        except Exception as exc:
            if is_over:
                raise
            await self.report(attempt, RunOutcome.failed(exc))

    async def report(
        self, attempt: A, outcome: RunOutcome | None, session_state: dict[str, Any] | None = None
    ) -> None:
        """Report the outcome of an attempt. None: there is nothing to report."""
        key = attempt.key
        if outcome is None or attempt.is_abandoned:
            if not attempt.is_parked:
                logger.info(
                    "stopped attempt %d of task %s, which does not belong to this instance any more",
                    key.attempt,
                    key.task_id,
                    extra={"action": "fenced_out", "task_id": key.task_id},
                )
            self.ledger.drop(key.task_id, key.attempt)
        elif await self._reporter.report(attempt, outcome, session_state):
            if self.ledger.unconfirmed % _CONFIRM_EVERY == 0:
                self._lease.beat_now()
            self._surface(key.task_id, outcome)

    def _surface(self, task_id: str, outcome: RunOutcome) -> None:
        """Log a failure, and raise it from `run` if the settings say so."""
        cause, error = outcome.cause, outcome.error
        if cause is None or error is None or outcome.status not in (TaskStatus.FAILED, TaskStatus.TIMED_OUT):
            return
        logger.warning(
            "task %s of service %s failed: %s: %.2000s",
            public_id(task_id),
            self._settings.service_name,
            type(cause).__name__,
            error.message,
            exc_info=loggable(cause, error) if outcome.status is TaskStatus.FAILED else None,
            extra={"action": "task_failed", "task_id": task_id},
        )
        if not self._settings.raise_exceptions:
            # Its frames refer to the run, and the library keeps it in some of them.
            cause.__traceback__ = None
        elif not self._failure.done():
            self._failure.set_exception(cause)

    def _on_reply(self, reply: HeartbeatReply) -> None:
        if reply.suspects:
            self._suspects.ask()
        self._reporter.publish_overdue()
        self._slots.changed()

    async def _stop(self, taking: set[asyncio.Task[None]], events: asyncio.Task[None]) -> None:
        """Drain: let running tasks end, hand back the others.

        Args:
            taking: What takes tasks.
            events: What takes events and cancellations.
        """
        for each in taking:
            each.cancel()
        self._lease.drain()
        was_cancelled = False
        try:
            await asyncio.wait(taking)
            await self._slots.drain(self._settings.drain_timeout)
        except asyncio.CancelledError:
            was_cancelled = True
        await run_to_completion(self._finish(taking, events))
        if was_cancelled:
            raise asyncio.CancelledError

    async def _finish(self, taking: set[asyncio.Task[None]], events: asyncio.Task[None]) -> None:
        """Hand back what is still running, wait until the rest is confirmed, and stop everything."""
        events.cancel()
        try:
            async with asyncio.timeout(_HAND_BACK_SECONDS):
                await hand_back(list(self.attempts), ledger=self.ledger, send=self._gateway.release)
                await asyncio.wait({*taking, events})
                # After this, outcomes are not published again.
                await self._slots.wait_for_confirmation()
        except TimeoutError:
            logger.warning(
                "service %s stops before the control plane has confirmed all attempts; their leases will end",
                self._settings.service_name,
                extra={"action": "hand_back_timeout"},
            )
        await self._lease.close()
        leaving = {*self._slots.tasks, *self._reporter.tasks}
        for task in leaving:
            task.cancel()
        if leaving:
            await asyncio.wait(leaving, timeout=_HAND_BACK_SECONDS)
        if self._serving is not None:
            await self._serving.close()


def _status_of(attempt: Attempt, outcome: RunOutcome | None) -> TaskStatus | None:
    """Return how an attempt has ended, as `AttemptCall.status` tells it."""
    if attempt.is_parked:
        return TaskStatus.WAITING
    return None if outcome is None or attempt.is_abandoned else outcome.status
