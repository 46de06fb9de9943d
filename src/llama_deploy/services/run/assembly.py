"""Assembles runs: each is complete when it is created, with its journal, clock and host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from workflows.handler import WorkflowHandler

from llama_deploy.services.run.attempt_reports import AttemptKey, AttemptReports
from llama_deploy.services.run.hosted_workflow import HostedWorkflow
from llama_deploy.services.run.journal_backlog import JournalSize
from llama_deploy.services.run.journal_format import RunHistory
from llama_deploy.services.run.journal_writer import JournalWriter
from llama_deploy.services.run.run_clock import RunClock
from llama_deploy.services.run.run_inbox import RunInbox
from llama_deploy.services.run.run_journal import RunJournal
from llama_deploy.services.run.run_observer import RunHooks
from llama_deploy.services.run.workflow_run import RunLimits, WorkflowRun
from llama_deploy.types.instance_protocol import JournalReply, JournalWrite


@dataclass(frozen=True, slots=True)
class RunAssembly:
    """Assembles the runs of one hosted workflow.

    Args:
        hosted: The workflow.
        idle_timeout: Seconds that a run may wait in memory for something from outside. None: without limit.
        write: Has the control plane store a write of a journal.
        on_waiting: See `RunHooks`.
        hold_lease: See `RunHooks`.
    """

    hosted: HostedWorkflow
    idle_timeout: float | None
    write: Callable[[JournalWrite], Awaitable[JournalReply]]
    on_waiting: Callable[[], None]
    hold_lease: Callable[[], Awaitable[None]]

    def assemble(
        self,
        *,
        key: AttemptKey,
        start: Callable[[], Awaitable[WorkflowHandler]],
        inbox: RunInbox,
        reports: AttemptReports,
        history: RunHistory,
        keeps_journal: bool,
    ) -> WorkflowRun:
        """Return the run of an attempt.

        Args:
            key: The attempt.
            start: Starts or resumes the run.
            inbox: The events that clients send.
            reports: Takes the events that the run streams.
            history: What earlier attempts have left.
            keeps_journal: Whether the run is written to its journal.
        """
        open_journal = partial(self._open_journal, key, inbox, reports, history)
        return WorkflowRun(
            self.hosted.workflow,
            start=start,
            inbox=inbox,
            hooks=RunHooks(on_event=reports.add, on_waiting=self.on_waiting, hold_lease=self.hold_lease),
            label=f"task {key.task_id}",
            limits=RunLimits(timeout=self.hosted.timeout, idle_timeout=self.idle_timeout),
            history=history,
            open_journal=open_journal if keeps_journal else None,
        )

    def _open_journal(
        self,
        key: AttemptKey,
        inbox: RunInbox,
        reports: AttemptReports,
        history: RunHistory,
        clock: RunClock,
        on_failure: Callable[[Exception], None],
    ) -> RunJournal:
        form = self.hosted.journals
        writer = JournalWriter(
            key=key,
            header=form.header,
            write=self.write,
            reports=reports,
            clock=clock,
            size=JournalSize.of(history.record),
        )
        return RunJournal(form=form, writer=writer, history=history, inbox=inbox, on_failure=on_failure)
