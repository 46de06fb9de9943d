"""Executes claimed attempts that run a workflow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from workflows import Workflow

from llama_deploy.concurrency.cancellation import is_being_cancelled
from llama_deploy.concurrency.retrying import Outage
from llama_deploy.interceptors import Hooks, StepCall
from llama_deploy.messages import QueueMessage
from llama_deploy.services.config import WorkflowServiceConfig
from llama_deploy.services.run.attempt_reports import AttemptKey, AttemptReports
from llama_deploy.services.run.event_shares import event_share
from llama_deploy.services.run.hosted_workflow import HostedWorkflow, start_run
from llama_deploy.services.run.inbox.open_questions import OpenQuestions
from llama_deploy.services.run.inbox.run_inbox import RunInbox
from llama_deploy.services.run.journal.journal_backlog import JournalSize
from llama_deploy.services.run.journal.journal_format import RunHistory
from llama_deploy.services.run.journal.journal_writer import JournalWriter, journal_outage
from llama_deploy.services.run.journal.needs_tracker import NeedsTracker
from llama_deploy.services.run.journal.run_journal import RunJournal
from llama_deploy.services.run.journal.run_texts import RunTexts
from llama_deploy.services.run.journal.stored_state import StoredState
from llama_deploy.services.run.journal.volatility import Volatility
from llama_deploy.services.run.run_clock import RunClock
from llama_deploy.services.run.run_observer import RunHooks
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.services.run.steps.step_guard import StepExitError
from llama_deploy.services.run.steps.step_threads import StepThreads, step_threads
from llama_deploy.services.run.workflow_run import RunLimits, Start, WorkflowRun
from llama_deploy.services.values.run_arguments import RunCall
from llama_deploy.services.values.session_state import WorkflowState
from llama_deploy.services.worker.attempt import task_info
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.services.worker.work_slots import WorkSlots
from llama_deploy.services.worker.worker_settings import WorkerHooks
from llama_deploy.services.worker.workflow_attempt import WorkflowAttempt
from llama_deploy.supervisor.step_trail import StepTrail
from llama_deploy.types.instance_protocol import ClaimReply, JournalReply, JournalWrite, TaskDispatch
from llama_deploy.types.json_values import decode_object
from llama_deploy.types.keys import public_id
from llama_deploy.workflow_library import resuming, take_timeout

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class AttemptExecutor:
    """Makes attempts from granted claims, and executes them. Each run is complete when it is created."""

    hosted: HostedWorkflow
    config: WorkflowServiceConfig
    publish: Callable[[QueueMessage], Awaitable[None]]
    """Sends a report. Returns when it is accepted, raises when it is rejected permanently."""
    write: Callable[[JournalWrite], Awaitable[JournalReply]]
    """Has the control plane store a write of a journal."""
    ledger: Ledger
    """Notes which inbox entries have arrived, and how long runs have been running."""
    hooks: WorkerHooks
    """May replace how the workflow's state is read and written."""
    slots: WorkSlots
    """Learns which runs only wait."""
    hold_lease: Callable[[], Awaitable[None]]
    """See `RunHooks`."""
    threads: StepThreads
    """For synchronous steps."""
    trail: StepTrail | None = None
    """Notes which steps execute. None: this process has no supervisor."""
    on_step: Hooks[StepCall] = ()
    """The hooks around a step."""
    _outage: Outage = field(default_factory=journal_outage, init=False)
    _has_warned: bool = field(default=False, init=False)
    """Whether a volatile run was logged."""

    def new_attempt(
        self, dispatch: TaskDispatch, reply: ClaimReply, headers: Mapping[str, str]
    ) -> WorkflowAttempt:
        """Return the attempt of a granted claim, which a message with these headers has offered."""
        task_id, number = dispatch.task_id, dispatch.attempt
        key = AttemptKey(task_id, number, reply.token)
        # A run that has a journal already is written in any case.
        keeps_journal = reply.run is not None or (self.config.durability != "task" and reply.volatile is None)
        begins_again = number > 1 and (reply.run is None or not reply.run.goes_on)
        asked = OpenQuestions(
            task_id,
            forms=self.hosted.forms,
            answers=self.hosted.answers,
            now=time.time,
            known=reply.questions,
            taken=reply.inbox_seq - len(reply.inbox),
            begins_again=begins_again,
        )
        reports = AttemptReports(
            key,
            self.publish,
            keep_published=keeps_journal,
            asked=asked,
            max_characters=event_share(self.config.max_concurrent_tasks),
        )
        return WorkflowAttempt(
            key=key,
            task=task_info(dispatch, reply, tell=reports.progress.tell),
            state=WorkflowState(
                state=reply.session_state,
                session_id=dispatch.session_id,
                origin=reply.state_origin,
                task_id=task_id,
                attempt=number,
                is_parallel=reply.is_parallel,
            ),
            input=reply.input,
            inbox=RunInbox(
                task_id=task_id,
                workflow=self.hosted.first,
                registry=self.hosted.events,
                on_seen=lambda seq: self.ledger.seen(task_id, number, inbox_seq=seq),
                entries=reply.inbox,
                seen=reply.inbox_seq,
                begins_again=begins_again,
                asked=asked,
            ),
            asked=asked,
            reports=reports,
            keeps_journal=keeps_journal,
            volatile_reason=reply.volatile,
            record=reply.run,
            headers=headers,
        )

    async def execute(self, attempt: WorkflowAttempt) -> tuple[RunOutcome | None, dict[str, Any] | None]:
        """Run an attempt; return its outcome and the changes of the session's state.

        Without an outcome there is nothing to report: the run is parked, or belongs to another instance.
        """
        run: WorkflowRun | None = None
        try:
            with self.hosted.object_of_run() as workflow:
                run = attempt.run = await self._prepare(attempt, workflow)
                self.ledger.measure(
                    attempt.key.task_id,
                    attempt.key.attempt,
                    run.clock.budget,
                    run.only_waits,
                    attempt.reports.steps,
                )
                if attempt.is_cancelled:
                    return RunOutcome.cancelled(), None
                step_threads.set(self.threads)
                outcome = await run.execute()
                if outcome is None or outcome.ctx is None:
                    return outcome, None
                await (self.hooks.save_state or self.hosted.states.save)(outcome.ctx, attempt.state)
        except BaseException as exc:
            # The boundary of the task: what the workflow's own code raises fails the task, whatever it is.
            if isinstance(exc, asyncio.CancelledError) and is_being_cancelled():
                raise
            return RunOutcome.failed(exc if isinstance(exc, Exception) else StepExitError("run", exc)), None
        finally:
            if run is not None and run.journal is not None:
                await run.journal.close()
        return outcome, self.hosted.states.changes(attempt.state)

    async def _prepare(self, attempt: WorkflowAttempt, workflow: Workflow) -> WorkflowRun:
        """Return the run of an attempt, from the beginning or from where an earlier attempt left it."""
        hosted, record, call = self.hosted, attempt.record, attempt.state
        call.run_kwargs = decode_object(attempt.input, what="the input with the run arguments")
        start: Start
        if record is not None and record.goes_on:
            context, history = hosted.journals.restore(record, workflow=workflow, task_id=attempt.key.task_id)
            if history.broker is not None:
                attempt.inbox.resume(history.broker, has_asked=history.has_asked, counts=history.asked)
            start = resuming(workflow, context)
            hosted.states.note(call, bases=history.bases)
        else:
            prepared, history = RunCall.prepare(workflow, call.run_kwargs), RunHistory(record)
            start = partial(start_run, prepared, await (self.hooks.load_state or hosted.states.load)(call))
        if call.left_out:
            history = replace(history, left_out=call.left_out)
        return WorkflowRun(
            workflow,
            start=start,
            inbox=attempt.inbox,
            hooks=RunHooks(
                attempt.reports.add,
                on_waiting=partial(self._on_waiting, attempt),
                on_working=partial(self._on_working, attempt),
                hold_lease=self.hold_lease,
                internal_events=self.config.stream_internal_events,
                steps=attempt.reports.steps,
                on_progress=attempt.reports.progress.tell,
                trail=None if self.trail is None else self.trail.of_task(attempt.key.task_id),
                on_step=self.on_step,
            ),
            label=f"task {public_id(attempt.key.task_id)}",
            limits=RunLimits(timeout=take_timeout(workflow), idle_timeout=self.config.idle_timeout),
            history=history,
            open_journal=partial(self._open_journal, attempt, history) if attempt.keeps_journal else None,
        )

    def _open_journal(
        self,
        attempt: WorkflowAttempt,
        history: RunHistory,
        clock: RunClock,
        on_failure: Callable[[Exception], None],
    ) -> RunJournal:
        form = self.hosted.journals.of_run(attempt.state.bases)
        stored = None if history.record is None else history.record.needs
        needs = NeedsTracker(self.hosted.first, form.shape, stored)
        writer = JournalWriter(
            key=attempt.key,
            header=form.header,
            needs=needs,
            write=self.write,
            reports=attempt.reports,
            clock=clock,
            size=JournalSize.of(history.record),
            outage=self._outage,
            asked=attempt.asked,
        )
        sealed = None if history.record is None else history.record.state
        state = StoredState.of(history.state or "", sealed)
        return RunJournal(
            texts=RunTexts(form, attempt.key.task_id, history, needs, state=state),
            writer=writer,
            inbox=attempt.inbox,
            on_failure=on_failure,
            volatility=Volatility(
                None if self.config.durability == "step" else partial(self._on_volatile, attempt)
            ),
        )

    def _on_waiting(self, attempt: WorkflowAttempt) -> None:
        self.slots.on_waiting(attempt)
        if attempt.inbox.is_quiet:  # otherwise the run gets an event at once
            attempt.asked.on_waiting()
            attempt.tell_waits()

    def _on_working(self, attempt: WorkflowAttempt) -> None:
        self.slots.on_working(attempt)
        attempt.asked.on_working()
        if not attempt.writes_journal:
            attempt.tell_waits()

    def _on_volatile(self, attempt: WorkflowAttempt, reason: str) -> None:
        """Warn of the first volatile run of the service; the others are only seen at their tasks."""
        if attempt.run is not None and attempt.run.clock.is_waiting:
            self.slots.on_waiting(attempt)  # it has begun to wait before it became volatile
        logger.log(
            logging.DEBUG if self._has_warned else logging.WARNING,
            "task %s of service %s is volatile: %s. That cannot be stored: the run continues in memory, and"
            " starts from its beginning if this process dies or stops; see docs/explanation/durability.md."
            " Further volatile tasks of this service are not logged",
            attempt.key.task_id,
            self.config.service_name,
            reason,
            extra={"action": "volatile", "task_id": attempt.key.task_id},
        )
        self._has_warned = True
