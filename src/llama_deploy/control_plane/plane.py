"""The control plane without HTTP: assembles its parts and runs them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Final, Self

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.dispatch_rules import DispatchPace
from llama_deploy.control_plane.decisions.retention_rules import RetentionPolicy
from llama_deploy.control_plane.decisions.size_limits import SizeLimits
from llama_deploy.control_plane.dispatch.clock_watch import ClockWatch
from llama_deploy.control_plane.dispatch.dispatcher import Dispatcher
from llama_deploy.control_plane.dispatch.leases import Leases
from llama_deploy.control_plane.dispatch.outbox_reader import OutboxReader
from llama_deploy.control_plane.dispatch.outbox_relay import OutboxRelay
from llama_deploy.control_plane.dispatch.pause_watch import PauseWatch
from llama_deploy.control_plane.dispatch.question_deadlines import QuestionDeadlines
from llama_deploy.control_plane.dispatch.router import Router
from llama_deploy.control_plane.dispatch.sweep_loop import SweepLoop
from llama_deploy.control_plane.dispatch.timers import Timers
from llama_deploy.control_plane.maintenance.storage import Storage
from llama_deploy.control_plane.measuring.backlogs import Backlogs
from llama_deploy.control_plane.measuring.metrics_page import MetricsPage
from llama_deploy.control_plane.measuring.plane_metrics import PlaneMetrics
from llama_deploy.control_plane.readiness import HealthCheck, Readiness
from llama_deploy.control_plane.requests.attempts.attempt_requests import Attempts
from llama_deploy.control_plane.requests.attempts.process_deaths import ProcessDeaths
from llama_deploy.control_plane.requests.attempts.report_barrier import ReportBarrier
from llama_deploy.control_plane.requests.attempts.report_consumer import (
    LATE_SECONDS,
    LOST_AFTER_SECONDS,
    Reports,
)
from llama_deploy.control_plane.requests.attempts.report_uploads import ReportUploads
from llama_deploy.control_plane.requests.callers.api_keys import ApiKeys
from llama_deploy.control_plane.requests.callers.audit_log import AuditLog
from llama_deploy.control_plane.requests.callers.denied_requests import DeniedRequests
from llama_deploy.control_plane.requests.callers.key_callers import KeyCallers
from llama_deploy.control_plane.requests.services.service_requests import Services
from llama_deploy.control_plane.requests.services.suspect_hints import SuspectHints
from llama_deploy.control_plane.requests.sessions.session_forks import SessionForks
from llama_deploy.control_plane.requests.sessions.session_lists import SessionLists
from llama_deploy.control_plane.requests.sessions.session_requests import Sessions
from llama_deploy.control_plane.requests.tasks.bulk_requests import BulkChanges
from llama_deploy.control_plane.requests.tasks.export_requests import Exports
from llama_deploy.control_plane.requests.tasks.feed_requests import Feeds
from llama_deploy.control_plane.requests.tasks.feed_watch import FeedWatch
from llama_deploy.control_plane.requests.tasks.inbox_requests import Inbox
from llama_deploy.control_plane.requests.tasks.retry_requests import Retries
from llama_deploy.control_plane.requests.tasks.stream_requests import Streams
from llama_deploy.control_plane.requests.tasks.task_lists import TaskLists
from llama_deploy.control_plane.requests.tasks.task_requests import Tasks, task_view
from llama_deploy.control_plane.requests.tasks.waiting_tasks import WaitingTasks
from llama_deploy.control_plane.storage.feed_interest import FeedInterest
from llama_deploy.control_plane.storage.outgoing import Outgoing, attempts_topic
from llama_deploy.control_plane.storage.owned_rows import StoredOwners
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.removed_ids import KnownRemovals
from llama_deploy.control_plane.storage.unit import Committed, Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.control_plane.store_notices import News
from llama_deploy.control_plane.streams.stream_hub import StreamHub
from llama_deploy.control_plane.streams.stream_packer import StreamPacker
from llama_deploy.control_plane.streams.task_feed import TaskFeed
from llama_deploy.control_plane.told_tasks import tell_ends, tell_losses
from llama_deploy.errors import InternalServerError, LlamaDeployError
from llama_deploy.interceptors import ControlPlaneInterceptor, hooks_of
from llama_deploy.message_queues.base import AbstractMessageQueue, PublishCallback, Subscription
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.feed_repository import TaskChangeRecord
from llama_deploy.state_stores.records import TaskRecord
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
    `sessions`, `session_lists`, `session_forks`, `tasks`, `task_lists`, `retries`, `bulk_changes`, `exports`,
    `streams`, `feeds`, `inbox`, `services`, `attempts`, `uploads`, `deaths`, `api_keys`, `audit`,
    `owned_rows`, `storage`, `backlogs`, `metrics` and `readiness`.

    Args:
        queue: The message queue. The caller closes it.
        store: The state store. The caller closes it.
        config: Settings.
        orchestrator: Sets the maximum of attempts, and may send tasks from service to service.
        publish_callback: Called with each message after it is published.
        checks: What else must be healthy for this control plane to be ready, by name.
        key_callers: Knows who has the API keys in the store. None: a new one.
        clock: Returns the current time, aware, UTC.
        interceptors: Hooks around its work, the outermost first.
        counted: Counts and times tasks. None: nothing does.
    """

    def __init__(  # noqa: PLR0913 - keyword-only, and assembled in one place
        self,
        *,
        queue: AbstractMessageQueue,
        store: StateStore,
        config: ControlPlaneConfig,
        orchestrator: BaseOrchestrator,
        publish_callback: PublishCallback | None = None,
        checks: Mapping[str, HealthCheck] = MappingProxyType({}),
        key_callers: KeyCallers | None = None,
        clock: Callable[[], datetime] = utc_now,
        interceptors: Sequence[ControlPlaneInterceptor] = (),
        counted: PlaneMetrics | None = None,
    ) -> None:
        self.config = config
        if counted is not None:
            interceptors = [*interceptors, counted]
        self._clock = clock
        self._on_report = None if counted is None else counted.reported
        self.queue = queue
        self.topics = Topics(config.topic_namespace)
        self._store = store
        self._hub = StreamHub()
        self._removals = KnownRemovals()
        self._feed = TaskFeed()
        self._interest = FeedInterest()
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
            known_removals=self._removals,
            interest=self._interest,
            on_transaction=None if counted is None else counted.transacted,
        )
        self._relay = OutboxRelay(
            queue,
            on_sent=self._writer.forget_sent,
            on_refused=self._refuse,
            publish_callback=publish_callback,
            on_dispatch=hooks_of(interceptors, ControlPlaneInterceptor, "dispatch"),
        )
        self._on_end = hooks_of(interceptors, ControlPlaneInterceptor, "ended")
        self._on_loss = hooks_of(interceptors, ControlPlaneInterceptor, "lost")
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
            timers=Timers(
                store=store, writer=self._writer, deadlines=QuestionDeadlines(self._writer), clock=clock
            ),
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
        self._packer = StreamPacker(store)
        self.storage = Storage(store, config, removals=self._removals, clock=clock)
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
        self.backlogs = Backlogs(store, clock)
        self.metrics = MetricsPage(
            store=store,
            backlogs=self.backlogs,
            relay=self._relay,
            paused_seconds=partial(self._pauses.paused_within, 60.0),
            registry=None if counted is None else counted.registry,
        )
        self.sessions = Sessions(store=store, writer=self._writer)
        self.session_lists = SessionLists(store)
        self.session_forks = SessionForks(self._writer)
        waiting = WaitingTasks(
            store=store,
            max_tasks=config.max_queued_tasks,
            max_messages=config.max_backlog,
            messages=self._relay.count_of_type,
        )
        self._key_callers = key_callers or KeyCallers(store)
        self.api_keys = ApiKeys(store, self._key_callers)
        self.audit = AuditLog(store, config.audit, DeniedRequests(store, clock))
        self.owned_rows = StoredOwners(store)
        self.tasks = Tasks(
            store=store,
            writer=self._writer,
            hub=self._hub,
            default_max_attempts=orchestrator.max_attempts,
            routed=self._router.is_needed,
            waiting=waiting,
            clock=clock,
            on_submit=hooks_of(interceptors, ControlPlaneInterceptor, "submit"),
        )
        self.retries = Retries(
            store=store,
            writer=self._writer,
            routed=self._router.is_needed,
            waiting=waiting,
            clock=clock,
            on_submit=self.tasks.on_submit,
        )
        self.exports = Exports(store, clock)
        self.bulk_changes = BulkChanges(
            store=store, writer=self._writer, retries=self.retries, waiting=waiting, clock=clock
        )
        self.task_lists = TaskLists(store, clock)
        self.inbox = Inbox(store=store, writer=self._writer)
        self.streams = Streams(store, self._hub)
        self.feeds = Feeds(store, self._feed, clock)
        self._feed_watch = FeedWatch(store=store, feed=self._feed, clock=clock)
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
            retention=RetentionPolicy.of(config),
        )
        self._barrier = ReportBarrier(queue, self.topics.control_plane, store=store)
        self.deaths = ProcessDeaths(store, self._writer, self._barrier)
        self.uploads = ReportUploads(
            self.attempts,
            probe_after=self._lost_after,
            publish=lambda message: self._relay.send([Outgoing.of(self.topics.control_plane, message)]),
        )

    async def __aenter__(self) -> Self:
        # While others run, heartbeats are still received and no message was lost with the queue.
        await self._removals.look(self._store)
        has_company = await self._store.has_company()
        unsent = None if has_company else await self._continue()
        self._subscription = await self.queue.subscribe(self.topics.control_plane)
        reports = Reports(
            self._subscription,
            self.attempts,
            barrier=self._barrier,
            lost_after=self._lost_after,
            on_stored=self._on_report,
        )
        self._background += [
            asyncio.create_task(reports.consume(), name="reports"),
            asyncio.create_task(self._pauses.run(), name="pauses"),
            asyncio.create_task(self._sweeps.run(), name="sweeps"),
            asyncio.create_task(self._router.run(has_company=has_company), name="router"),
            asyncio.create_task(self._publish_outbox(after=unsent), name="outbox"),
            asyncio.create_task(self._outbox.read_on(), name="rest of the outbox"),
            asyncio.create_task(self._packer.run(), name="stream packer"),
            asyncio.create_task(self.storage.retention.run(), name="retention"),
            asyncio.create_task(self.audit.denied.run(), name="audit"),
        ]
        if self._store.shared:
            news = News(
                store=self._store,
                hub=self._hub,
                sweeps=self._sweeps,
                removals=self._removals,
                feed=self._feed,
                watch=self._feed_watch,
                interest=self._interest,
                callers=self._key_callers,
            )
            self._background += [
                asyncio.create_task(news.run(), name="news"),
                asyncio.create_task(self._feed_watch.run(), name="feed watch"),
                asyncio.create_task(self._outbox.take_over(), name="takeover"),
            ]
        return self

    @property
    def _lost_after(self) -> float:
        """After how many seconds a report that is missing counts as lost."""
        return LATE_SECONDS if self.queue.durable else LOST_AFTER_SECONDS

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
        self._feed.close()

    async def close(self) -> None:
        """Finish pending writes and stop. Deletes nothing. Idempotent."""
        self._hub.close()
        self._feed.close()
        await self.readiness.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._subscription is not None:
            await self._subscription.close()
        await self._relay.close()
        await self._writer.close()
        await self.audit.denied.flush()

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
        if committed.streamed or self._feed.is_read:
            self._note_streams(committed)
        if committed.ended:
            self._note_ends(committed.ended)
        if committed.lost and self._on_loss:
            tell_losses(self._on_loss, committed.lost, at=self._clock())
        for task_id in committed.deleted:
            self._hub.deleted(task_id)
        if committed.fleets:
            self._sweeps.note_fleets(committed.fleets)
        if committed.free:
            self._sweeps.note_free(committed.free)
        if committed.due is not None:
            self._sweeps.wake(committed.due)

    def _note_ends(self, ended: Mapping[str, TaskRecord]) -> None:
        for task_id, task in ended.items():
            if self._hub.is_watched(task_id):
                self._hub.ended(task_id, task_view(task))
        if self._on_end:
            tell_ends(self._on_end, ended.values())

    def _note_streams(self, committed: Committed) -> None:
        self._packer.note(committed.streamed, ended=committed.ended)
        if not self._feed.is_read:
            return
        self._feed.committed(map(TaskChangeRecord.of, committed.changed()))
        self._feed.grown(committed.grown)
        self._feed.deleted(committed.deleted)
