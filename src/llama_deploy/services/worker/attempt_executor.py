"""Executes claimed attempts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from llama_deploy.messages import QueueMessage
from llama_deploy.services.run.assembly import RunAssembly
from llama_deploy.services.run.attempt_reports import AttemptKey, AttemptReports
from llama_deploy.services.run.journal_format import RunHistory
from llama_deploy.services.run.run_inbox import RunInbox
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.services.run.workflow_run import WorkflowRun
from llama_deploy.services.values.run_arguments import RunCall, parse_arguments
from llama_deploy.services.worker.attempt import Attempt, WorkflowState
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.services.worker.session_states import SessionStates
from llama_deploy.services.worker.worker_settings import WorkerHooks
from llama_deploy.types.instance_protocol import ClaimReply, TaskDispatch
from llama_deploy.workflow_library import resuming


class AttemptExecutor:
    """Makes attempts from granted claims, and executes them.

    Args:
        assembly: Assembles runs.
        publish: Sends a report. Returns when it is accepted, raises when it is rejected permanently.
        ledger: Notes which inbox entries have arrived.
        keeps_journals: Write all runs to journals. A run that has a journal already is written in any case.
        hooks: May replace how the workflow's state is read and written.
    """

    def __init__(
        self,
        assembly: RunAssembly,
        *,
        publish: Callable[[QueueMessage], Awaitable[None]],
        ledger: Ledger,
        keeps_journals: bool,
        hooks: WorkerHooks,
    ) -> None:
        self._assembly = assembly
        self._hosted = assembly.hosted
        self._publish = publish
        self._ledger = ledger
        self._keeps_journals = keeps_journals
        self._states = SessionStates(assembly.hosted.states)
        self._load = hooks.load_state or self._states.load
        self._save = hooks.save_state or self._states.save

    def new_attempt(self, dispatch: TaskDispatch, reply: ClaimReply) -> Attempt:
        """Return the attempt of a granted claim."""
        task_id, number = dispatch.task_id, dispatch.attempt
        key = AttemptKey(task_id, number, reply.token)
        keeps_journal = self._keeps_journals or reply.run is not None
        return Attempt(
            key=key,
            state=WorkflowState(
                state=reply.session_state, session_id=dispatch.session_id, task_id=task_id, attempt=number
            ),
            input=reply.input,
            inbox=RunInbox(
                task_id=task_id,
                workflow=self._hosted.workflow,
                registry=self._hosted.events,
                on_seen=lambda seq: self._ledger.seen(task_id, number, inbox_seq=seq),
                entries=reply.inbox,
                seen=reply.inbox_seq,
            ),
            reports=AttemptReports(key, self._publish, keep_published=keeps_journal),
            keeps_journal=keeps_journal,
            record=reply.run,
        )

    async def execute(self, attempt: Attempt) -> tuple[RunOutcome | None, dict[str, Any] | None]:
        """Run an attempt; return its outcome and the changes of the session's state.

        Without an outcome there is nothing to report: the run is parked, or belongs to another instance.
        """
        run: WorkflowRun | None = None
        try:
            run = await self._prepare(attempt)
            attempt.begin(run)
            if attempt.is_cancelled:
                return RunOutcome.cancelled(), None
            outcome = await run.execute()
            if outcome is None or outcome.ctx is None:
                return outcome, None
            await self._save(outcome.ctx, attempt.state)
        except Exception as exc:  # noqa: BLE001 - the boundary of the task: what fails here fails the task
            return RunOutcome.failed(exc), None
        finally:
            if run is not None and run.journal is not None:
                await run.journal.close()
        return outcome, self._states.changes(attempt.state)

    async def _prepare(self, attempt: Attempt) -> WorkflowRun:
        """Return the run of an attempt, from the beginning or from where an earlier attempt left it."""
        record, call = attempt.record, attempt.state
        call.run_kwargs = parse_arguments(attempt.input)
        if record is not None and record.goes_on:
            context, history = self._hosted.journals.restore(record, task_id=attempt.key.task_id)
            if history.broker is not None:
                attempt.inbox.resume(history.broker)
            start = resuming(self._hosted.workflow, context)
            self._states.note(call)
        else:
            prepared, history = RunCall.prepare(self._hosted.workflow, call.run_kwargs), RunHistory(record)
            start = partial(prepared.start, await self._load(call))
        return self._assembly.assemble(
            key=attempt.key,
            start=start,
            inbox=attempt.inbox,
            reports=attempt.reports,
            history=history,
            keeps_journal=attempt.keeps_journal,
        )
