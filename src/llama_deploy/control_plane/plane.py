"""The control plane without HTTP: assembles its parts and runs them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final, Self

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.dispatch_rules import DispatchPace
from llama_deploy.control_plane.decisions.size_limits import SizeLimits
from llama_deploy.control_plane.dispatch.clock_watch import ClockWatch
from llama_deploy.control_plane.dispatch.dispatcher import Dispatcher
from llama_deploy.control_plane.dispatch.leases import Leases
from llama_deploy.control_plane.dispatch.outbox_reader import OutboxReader
from llama_deploy.control_plane.dispatch.outbox_relay import OutboxRelay
from llama_deploy.control_plane.dispatch.pause_watch import PauseWatch
from llama_deploy.control_plane.dispatch.router import Router
from llama_deploy.control_plane.dispatch.sweep_loop import SweepLoop
from llama_deploy.control_plane.dispatch.timers import Timers
from llama_deploy.control_plane.readiness import HealthCheck, Readiness
from llama_deploy.control_plane.requests.attempt_requests import Attempts
from llama_deploy.control_plane.requests.process_deaths import ProcessDeaths
from llama_deploy.control_plane.requests.report_barrier import ReportBarrier
from llama_deploy.control_plane.requests.report_consumer import LATE_SECONDS, LOST_AFTER_SECONDS, Reports
from llama_deploy.control_plane.requests.report_uploads import ReportUploads
from llama_deploy.control_plane.requests.service_requests import Services
from llama_deploy.control_plane.requests.session_requests import Sessions
from llama_deploy.control_plane.requests.suspect_hints import SuspectHints
from llama_deploy.control_plane.requests.task_requests import Tasks, task_view
from llama_deploy.control_plane.requests.waiting_tasks import WaitingTasks
from llama_deploy.control_plane.storage.outgoing import Outgoing, attempts_topic
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Committed, Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.control_plane.store_notices import News
from llama_deploy.control_plane.streams.stream_hub import StreamHub
from llama_deploy.errors import InternalServerError, LlamaDeployError
from llama_deploy.message_queues.base import AbstractMessageQueue, PublishCallback, Subscription
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.state_stores.base import StateStore
from llama_deploy.types.instance_protocol import TaskDispatch
from llama_deploy.types.topics import Topics

logger = logging.getLogger(__name__)

_LOOKS_PER_LEASE: Final = 16
"""How often within a lease the control plane looks whether it was paused."""


def utc_now() -> datetime:
    """Return the current time, aware, UTC."""
    return datetime.now(UTC)


class ControlPlane:
    """A control plane. Use it with `async with`, in the running loop.

    Entering it resumes the work that an earlier one has left in the store. Its parts are its surface:
    `sessions`, `tasks`, `services`, `attempts`, `uploads`, `deaths` and `readiness`.

    Args:
        queue: The message queue. The caller closes it.
        store: The state store. The caller closes it.
        config: Settings.
        orchestrator: Sets the maximum of attempts, and may send tasks from service to service.
        publish_callback: Called with each message after it is published.
        checks: What else must be healthy for this control plane to be ready, by name.
        clock: Returns the current time, aware, UTC.
    """

    def __init__(
        self,
        *,
        queue: AbstractMessageQueue,
        store: StateStore,
        config: ControlPlaneConfig,
        orchestrator: BaseOrchestrator,
        publish_callback: PublishCallback | None = None,
        checks: Mapping[str, HealthCheck] = MappingProxyType({}),
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.config = config
        self.queue = queue
        self.topics = Topics(config.topic_namespace)
        self._store = store
        self._hub = StreamHub()
        self._writer = Writer(
            store,
            clock=clock,
            topics=self.topics,
            pace=DispatchPace(
                unclaimed=Backoff(config.redispatch_seconds, longest=64 * config.redispatch_seconds),
                lost=Backoff(config.retry_backoff_seconds, longest=config.retry_backoff_max_seconds),
            ),
            after_commit=self._after_commit,
            limits=SizeLimits(
                max_inbox_bytes=config.max_inbox_bytes,
                max_session_state_bytes=config.max_session_state_bytes,
            ),
        )
        self._relay = OutboxRelay(
            queue,
            on_sent=self._writer.forget_sent,
            on_refused=self._refuse,
            publish_callback=publish_callback,
        )
        self._outbox = OutboxReader(store=store, writer=self._writer, relay=self._relay, clock=clock)
        lease = timedelta(seconds=config.lease_seconds)
        self._pauses = PauseWatch(config.lease_seconds / _LOOKS_PER_LEASE)
        self._sweeps = SweepLoop(
            dispatcher=Dispatcher(
                store=store,
                writer=self._writer,
                clock=clock,
                lease=lease,
                is_waiting=lambda task: self._relay.is_waiting(attempts_topic(task, self.topics)),
            ),
            timers=Timers(store=store, writer=self._writer, clock=clock),
            leases=Leases(
                store=store,
                writer=self._writer,
                watch=ClockWatch(clock),
                pauses=self._pauses,
                lease_seconds=config.lease_seconds,
            ),
            clock=clock,
            lease=lease,
            max_pause=timedelta(seconds=config.redispatch_seconds),
        )
        self._router = Router(
            store=store,
            writer=self._writer,
            orchestrator=orchestrator,
            timeout=config.orchestrator_timeout,
            max_calls=config.max_orchestrator_calls,
            clock=clock,
            lease=lease,
        )
        self._background: list[asyncio.Task[None]] = []
        self._subscription: Subscription | None = None
        self.readiness = Readiness(
            store=store,
            queue=queue,
            relay=self._relay,
            parts=self._background,
            min_free_disk_bytes=config.min_free_disk_bytes,
            further=checks,
        )
        self.sessions = Sessions(store=store, writer=self._writer)
        self.tasks = Tasks(
            store=store,
            writer=self._writer,
            hub=self._hub,
            default_max_attempts=orchestrator.max_attempts,
            routed=self._router.is_needed,
            waiting=WaitingTasks(
                store=store,
                max_tasks=config.max_queued_tasks,
                max_messages=config.max_backlog,
                messages=self._relay.count_of_type,
            ),
            clock=clock,
        )
        self.services = Services(
            store=store,
            writer=self._writer,
            clock=clock,
            lease=lease,
            hints=SuspectHints(store, clock, lease),
        )
        self.attempts = Attempts(
            store=store,
            writer=self._writer,
            lease_seconds=config.lease_seconds,
        )
        self._barrier = ReportBarrier(queue, self.topics.control_plane, store=store)
        self.deaths = ProcessDeaths(store, self._writer, self._barrier)
        self._lost_after = LATE_SECONDS if queue.durable else LOST_AFTER_SECONDS
        self.uploads = ReportUploads(
            self.attempts,
            probe_after=self._lost_after,
            publish=lambda message: self._relay.send([Outgoing(self.topics.control_plane, message)]),
        )

    async def __aenter__(self) -> Self:
        # While others run, heartbeats are still received and no message was lost with the queue.
        has_company = await self._store.has_company()
        unsent = None if has_company else await self._continue()
        self._subscription = await self.queue.subscribe(self.topics.control_plane)
        reports = Reports(
            self._subscription, self.attempts, barrier=self._barrier, lost_after=self._lost_after
        )
        self._background += [
            asyncio.create_task(reports.consume(), name="reports"),
            asyncio.create_task(self._pauses.run(), name="pauses"),
            asyncio.create_task(self._sweeps.run(), name="sweeps"),
            asyncio.create_task(self._router.run(has_company=has_company), name="router"),
            asyncio.create_task(self._publish_outbox(after=unsent), name="outbox"),
            asyncio.create_task(self._outbox.read_on(), name="rest of the outbox"),
        ]
        if self._store.shared:
            news = News(store=self._store, hub=self._hub, sweeps=self._sweeps)
            self._background += [
                asyncio.create_task(news.run(), name="news"),
                asyncio.create_task(self._outbox.take_over(), name="takeover"),
            ]
        return self

    async def _continue(self) -> int | None:
        """Resume the work in the store, as its only control plane.

        Returns:
            The position of the outbox from which messages are still to be published. None: there are none.
        """
        await self._sweeps.leases.renew_all()
        unsent = await self._outbox.resend_page()
        if not self.queue.durable:
            await self._sweeps.dispatcher.dispatch_all()
        return unsent

    async def _publish_outbox(self, *, after: int | None) -> None:
        await self._outbox.resend_rest(after)
        await self._relay.run()

    async def run(self) -> None:
        """Wait until a part fails, and raise its error. Cancel this to stop waiting."""
        done, _ = await asyncio.wait(self._background, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
            raise InternalServerError(
                f"the part {task.get_name()!r} of the control plane has ended unexpectedly"
            )

    def wake_waiters(self) -> None:
        """End all long polls and streams, because the server is about to stop."""
        self._hub.close()

    async def close(self) -> None:
        """Finish pending writes and stop. Deletes nothing. Idempotent."""
        self._hub.close()
        await self.readiness.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._subscription is not None:
            await self._subscription.close()
        await self._relay.close()
        await self._writer.close()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _refuse(self, message: QueueMessage, error: LlamaDeployError) -> None:
        """Fail the task whose message the queue rejects permanently."""
        logger.error(
            "the queue rejects message %s: %s", message.id_, error, extra={"action": "message_rejected"}
        )
        if message.action is not ActionTypes.NEW_TASK:
            return
        refused = TaskDispatch.model_validate(message.data)

        def run(unit: Unit) -> None:
            task = unit.tasks.find(refused.task_id)
            if task is not None:
                unit.apply(lifecycle.refuse(task, attempt=refused.attempt, error=error, at=unit.now))

        await self._writer.write(Command(run, Reads.of_tasks(refused.task_id, may_end=True)))

    def _after_commit(self, committed: Committed) -> None:
        self._relay.send(committed.outgoing)
        if committed.unrouted:
            self._router.wake(committed.unrouted)
        for task_id in committed.grown:
            self._hub.grown(task_id)
        for task_id, task in committed.ended.items():
            if self._hub.is_watched(task_id):
                self._hub.ended(task_id, task_view(task))
        for task_id in committed.deleted:
            self._hub.deleted(task_id)
        if committed.fleets:
            self._sweeps.note_fleets(committed.fleets)
        if committed.free:
            self._sweeps.note_free(committed.free)
        if committed.due is not None:
            self._sweeps.wake(committed.due)
