"""Requests of instances for attempts: claim, stream, journal, park, finish, release."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from pydantic import ValidationError

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.deaths import is_suspect
from llama_deploy.control_plane.decisions.destinations import shown
from llama_deploy.control_plane.decisions.question_rules import with_waits
from llama_deploy.control_plane.decisions.retention_rules import RetentionPolicy
from llama_deploy.control_plane.decisions.takeovers import TakeoverReason
from llama_deploy.control_plane.decisions.transitions import Transition
from llama_deploy.control_plane.requests.attempts.attempt_parts import (
    AttemptParts,
    Grant,
    granted,
    limited,
)
from llama_deploy.control_plane.requests.attempts.overwritten_keys import OverwrittenKeys
from llama_deploy.control_plane.requests.attempts.rejection_log import RejectionLog
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.errors import (
    InvalidRequestError,
    LlamaDeployError,
    PayloadTooLargeError,
    SerializationError,
    UnavailableError,
)
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.records import InstanceRecord, TaskRecord
from llama_deploy.types import TaskStatus
from llama_deploy.types.instance_protocol import (
    BEATS_PER_LEASE,
    AttemptEvents,
    AttemptOutcome,
    ClaimReply,
    ClaimRequest,
    JournalReply,
    JournalWrite,
    ReleaseReply,
    ReleaseRequest,
)
from llama_deploy.types.validation import describe_validation_error

logger = logging.getLogger(__name__)

_TOKEN_BYTES: Final = 16


class Attempts:
    """Grants attempts to instances, and stores what they report."""

    def __init__(
        self,
        *,
        store: StateStore,
        writer: Writer,
        lease_seconds: float,
        retention: RetentionPolicy,
    ) -> None:
        self._store = store
        self._writer = writer
        self._lease = timedelta(seconds=lease_seconds)
        self._retention = retention
        self._rejections = RejectionLog()
        self._overwritten = OverwrittenKeys()
        self.parts = AttemptParts(store)

    async def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimReply]:
        """Decide on claims, in order. A rejected one says why."""
        # If the store is a separate server, its crash alone could lose an unsynced claim.
        synced = self._store.shared
        outcomes = await self._writer.write_all(
            [_claim_command(each, lease=self._lease, synced=synced) for each in requests]
        )
        return limited(
            ClaimReply(granted=False, reason=str(outcome), retriable=outcome.retriable)
            if isinstance(outcome, LlamaDeployError)
            else outcome
            for outcome in outcomes
        )

    async def journal(self, writes: Sequence[JournalWrite]) -> list[JournalReply]:
        """Store writes to the journals of runs, in order. A rejected one says why."""
        outcomes = await self._writer.write_all([_journal_command(write) for write in writes])
        return [self._journal_reply(*pair) for pair in zip(writes, outcomes, strict=True)]

    def _journal_reply(self, write: JournalWrite, outcome: LlamaDeployError | None) -> JournalReply:
        if outcome is None:
            return JournalReply(stored=True)
        if not outcome.retriable:
            self._rejections.note("a journal write", outcome, task_id=write.task_id, attempt=write.attempt)
        return JournalReply(stored=False, reason=str(outcome), retriable=outcome.retriable)

    async def release(self, requests: Sequence[ReleaseRequest]) -> list[ReleaseReply]:
        """Release attempts that their owners will not finish."""
        outcomes = await self._writer.write_all([_release_command(request) for request in requests])
        for outcome in outcomes:
            if isinstance(outcome, LlamaDeployError) and outcome.retriable:
                raise outcome
        return [
            ReleaseReply(outcome="stale" if isinstance(outcome, LlamaDeployError) else "released")
            for outcome in outcomes
        ]

    async def take(self, messages: Sequence[QueueMessage]) -> list[LlamaDeployError | None]:
        """Store reports of instances. Return for each message None, or why it should be delivered again.

        A malformed report, or one whose sender does not own the attempt, is logged and counts as handled.
        """
        commands: list[Command[None]] = []
        reports: list[tuple[int, AttemptEvents]] = []
        answers: list[LlamaDeployError | None] = [None] * len(messages)
        for place, message in enumerate(messages):
            try:
                report = _report(message)
                commands.append(_command(report, self._overwritten, self._retention))
                reports.append((place, report))
            except LlamaDeployError as exc:
                answers[place] = _answer(message, exc)
        outcomes = await self._writer.write_all(commands)
        for (place, report), outcome in zip(reports, outcomes, strict=True):
            if outcome is not None and outcome.retriable:
                answers[place] = outcome
            elif outcome is not None:
                what = f"a {messages[place].action} message"
                self._rejections.note(what, outcome, task_id=report.task_id, attempt=report.attempt)
        return answers

    async def take_back(self, message: QueueMessage) -> None:
        """Take an attempt from its owner, because the queue has lost reports that came before this one.

        It does not count as a lost instance. What the owner still sends is rejected.
        """
        report = _report(message)

        def run(unit: Unit) -> None:
            task = unit.tasks.find(report.task_id)
            if task is not None and task.token == report.token:
                unit.apply(lifecycle.take_back(task, reason=TakeoverReason.REPORTS_LOST, at=unit.now))

        logger.warning(
            "reports of attempt %d of task %s are lost; the next attempt is due",
            report.attempt,
            report.task_id,
            extra={"action": "reports_lost", "task_id": report.task_id},
        )
        try:
            await self._writer.write(Command(run, Reads.of_tasks(report.task_id, may_end=True)))
        except LlamaDeployError as exc:
            logger.warning("task %s: %s", report.task_id, exc, extra={"action": "reports_lost"})


def _claim_command(request: ClaimRequest, *, lease: timedelta, synced: bool) -> Command[Grant]:
    def run(unit: Unit) -> Grant:
        task = unit.tasks.get(request.task_id)
        instance = unit.instances.find(request.instance_id)
        if instance is None:
            # An instance without a lease could die unnoticed.
            raise UnavailableError(
                f"instance {request.instance_id} is not registered; register it before it claims"
            )
        claimed = lifecycle.claim(
            task,
            instance_id=request.instance_id,
            attempt=request.attempt,
            token=secrets.token_urlsafe(_TOKEN_BYTES),
            at=unit.now,
            durability=request.durability,
            version=instance.version,
        )
        if task.status is TaskStatus.QUEUED and (fault := unit.fleets.fault(task, instance)) is not None:
            # It counts as alive when the attempt is sent on, so that it does not get the attempt again.
            _renew_after_pause(unit, instance, lease)
            return Grant(_refused(unit, task, instance, fault), {})
        # The answer first: if a part cannot be read, the attempt must stay unclaimed.
        grant = granted(unit, task, token=claimed.task.token or "")
        unit.apply(claimed)
        _renew_after_pause(unit, instance, lease)
        return grant

    # A claim that is lost in a power cut is made again, and the token of the lost one is rejected.
    reads = Reads.of_tasks(request.task_id, with_session=True, with_run=True)
    further = Reads(instances={request.instance_id}, inboxes={request.task_id})
    return Command(run, reads | further, synced=synced)


def _renew_after_pause(unit: Unit, instance: InstanceRecord, lease: timedelta) -> None:
    """Renew the lease of an instance that was paused: its next heartbeat may come too late."""
    if instance.lease_expires_at - unit.now < lease / BEATS_PER_LEASE:
        unit.renew_lease(instance, lease)


def _refused(unit: Unit, task: TaskRecord, instance: InstanceRecord, fault: str) -> ClaimReply:
    """Refuse a claim, and publish the attempt for instances that fit."""
    if is_suspect(task):
        # It goes to the same topic again, whose readers change. Until then nobody is asked to run it.
        unit.postpone(task._replace(dispatches=0))
    else:
        unit.apply(Transition(task, dispatch=True), may_share=False)
    logger.info(
        "instance %s cannot run attempt %d of task %s: %s",
        instance.instance_id,
        task.attempt,
        task.task_id,
        fault,
        extra={"action": "misfit", "task_id": task.task_id},
    )
    return ClaimReply(granted=False, reason=f"version {shown(instance.version)} cannot run the task: {fault}")


def _journal_command(write: JournalWrite) -> Command[None]:
    def run(unit: Unit) -> None:
        written = lifecycle.journal(unit.tasks.get(write.task_id), write, at=unit.now)
        unit.apply(written if write.waits is None else with_waits(written, write, at=unit.now))
        unit.steps.add(write.task_id, write.attempt, write.steps)

    # Parking a run whose cancellation was requested ends it. When a run waits, others may have their turn.
    may_end = write.parking is not None or _may_begin_to_wait(write)
    return Command(run, Reads.of_tasks(write.task_id, may_end=may_end))


def _may_begin_to_wait(sent: AttemptEvents) -> bool:
    return sent.waits is not None and sent.waits.waits


def _release_command(request: ReleaseRequest) -> Command[None]:
    def run(unit: Unit) -> None:
        task = unit.tasks.get(request.task_id)
        unit.apply(lifecycle.hand_back(task, attempt=request.attempt, token=request.token, at=unit.now))

    return Command(run, Reads.of_tasks(request.task_id, may_end=True))


def _report(message: QueueMessage) -> AttemptEvents:
    """Return the report of an instance.

    Raises:
        InvalidRequestError: The message is not a valid report.
    """
    try:
        if message.action is ActionTypes.TASK_STREAM:
            return AttemptEvents.model_validate(message.data)
        if message.action is ActionTypes.COMPLETED_TASK:
            outcome = AttemptOutcome.model_validate(message.data)
            if not outcome.status.is_terminal:
                raise InvalidRequestError(
                    f"the status of an outcome must be terminal, not {outcome.status.value!r}"
                )
            return outcome
    except ValidationError as exc:
        advice = "" if "token" in message.data else "; publish it with `BaseService.publish`"
        raise InvalidRequestError(
            f"malformed {message.action}: {describe_validation_error(exc)}{advice}"
        ) from exc
    raise InvalidRequestError(f"the control plane does not accept {message.action} messages")


def _command(report: AttemptEvents, log: OverwrittenKeys, retention: RetentionPolicy) -> Command[None]:
    if isinstance(report, AttemptOutcome):
        return _outcome_command(report, log, retention)
    return _events_command(report)


def _events_command(sent: AttemptEvents) -> Command[None]:
    def run(unit: Unit) -> None:
        taken = lifecycle.take_events(unit.tasks.get(sent.task_id), sent)
        unit.apply(taken if sent.waits is None else with_waits(taken, sent, at=unit.now))

    return Command(run, Reads.of_tasks(sent.task_id, may_end=_may_begin_to_wait(sent)))


def _outcome_command(
    outcome: AttemptOutcome, log: OverwrittenKeys, retention: RetentionPolicy
) -> Command[None]:
    def run(unit: Unit) -> None:
        task = unit.tasks.get(outcome.task_id)
        if lifecycle.is_repeated(unit.tasks.whole(task) if task.status.is_terminal else task, outcome):
            return
        is_kept = task.has_run and retention.keeps_journal(
            service_name=task.service_name, session_id=task.session_id
        )
        ended = lifecycle.end(task, outcome, at=unit.now, keeps_journal=is_kept)
        if outcome.session_state:
            session = unit.sessions.get(task.session_id)
            if session.policy.may_overlap:
                log.note(
                    unit.sessions.state_of(session),
                    outcome.session_state,
                    session_id=task.session_id,
                    task_id=task.task_id,
                )
            try:
                unit.sessions.merge_state(task.session_id, outcome.session_state)
            except (PayloadTooLargeError, SerializationError) as exc:
                ended = lifecycle.end(task, lifecycle.failed(outcome, exc), at=unit.now)
        if not ended.ended:
            unit.steps.add(outcome.task_id, outcome.attempt, outcome.steps)
        unit.apply(ended)

    with_session = bool(outcome.session_state)
    return Command(run, Reads.of_tasks(outcome.task_id, may_end=True, with_session=with_session))


def _answer(message: QueueMessage, error: LlamaDeployError) -> LlamaDeployError | None:
    """Return the error if the message should be delivered again; otherwise log it."""
    if error.retriable:
        return error
    logger.warning(
        "rejected %s message %s: %s",
        message.action,
        message.id_,
        error,
        extra={"action": "reject_report", "message_id": message.id_},
    )
    return None
