"""The runtime on which hosted workflows run: the library's own runtime, with a host that observes each run.

The library's control loop is a reducer: a tick (an event that came in, the result of a step) changes the
run's state and decides what to do. The host is called for each tick, for each event that is streamed, and
before steps start. That last call is where a run is written to its journal.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from workflows import Workflow
from workflows.events import Event

from llama_deploy.services.run.inbox.open_questions import asking_step
from llama_deploy.services.run.run_observer import RunObserver
from llama_deploy.services.run.steps.contained_steps import contained_steps
from llama_deploy.services.run.steps.open_steps import step_run
from llama_deploy.services.run.steps.start_gate import StartGate
from llama_deploy.services.run.steps.step_guard import StepExitError, watching
from llama_deploy.services.run.steps.step_turns import StepTurns
from llama_deploy.workflow_library import (
    BaseInternalRunAdapterDecorator,
    BaseRuntimeDecorator,
    BrokerState,
    ExternalRunAdapter,
    InternalRunAdapter,
    ManyObjectsRuntime,
    NamedTask,
    PendingStart,
    PendingWorker,
    RegisteredWorkflow,
    Runtime,
    TickStepResult,
    WaitForNextTaskResult,
    WorkerTask,
    WorkflowTick,
    execution_of,
    get_current_run_id,
    install_runtime,
)

hosting: ContextVar[RunObserver | None] = ContextVar("hosting", default=None)
"""The host of the run that is started next in this context."""


class HostedAdapter(BaseInternalRunAdapterDecorator):
    """A run's access to the library's runtime; calls the host on the way."""

    def __init__(self, decorated: InternalRunAdapter, host: RunObserver) -> None:
        super().__init__(decorated)
        self._host = host
        self._turns = StepTurns()
        self._gate = StartGate()
        host.attach(decorated)

    async def get_now(self) -> float:
        """Return the time of the run, see `RunClock.now`. The library asks before it processes a tick."""
        self._host.inbox.before_tick()
        return self._host.clock.now()

    async def on_tick(self, tick: WorkflowTick) -> None:
        """See `RunObserver.on_tick`."""
        if self._host.journal is not None and not self._host.journal.volatility:
            await super().on_tick(tick)
        await self._host.on_tick(tick)

    async def after_tick(self, tick: WorkflowTick) -> None:
        """See `RunObserver.after_tick`."""
        await super().after_tick(tick)
        await self._host.after_tick(tick)

    async def write_to_event_stream(self, event: Event) -> None:
        """See `RunObserver.on_event`. The library's own stream of a hosted run has no readers."""
        await self._host.on_event(event)

    async def close(self) -> None:
        """The run ends: its steps are cancelled next."""
        self._host.is_leaving = True
        await super().close()

    async def send_event(self, tick: WorkflowTick) -> None:
        """Take what a step sends, or what comes from outside. See `SentEvents`."""
        await super().send_event(self._host.history.sent.replace_repeated(tick))

    async def wait_for_next_task(
        self,
        running: list[NamedTask],
        pending: list[PendingStart],
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
    ) -> WaitForNextTaskResult:
        """Return the next step that has ended; start what is pending. See `RunObserver.before_steps`.

        Steps that have ended are taken first, and steps that they start are held back until then. So what all
        of them have done is stored with one write, however many there are.
        """
        turns, gate = self._turns, self._gate
        turns.keep(running)
        ended = None if turns.is_any_collecting(pending) else turns.next_ended()
        if ended is None:
            try:
                await self._host.before_steps(starting=gate.is_holding or any(map(_is_step, pending)))
            except BaseException:
                for each in pending:
                    each.coro.close()
                raise
            gate.open()
        started = [each.start(self._start(each, is_held=ended is not None)) for each in pending]
        turns.add(started)
        if ended is None:
            try:
                ended = (await super().wait_for_next_task(turns.in_turn(), [], timeout)).completed
            except asyncio.CancelledError:
                # The library knows these tasks only when this call returns, and would leave them running.
                for known in started:
                    known.task.cancel()
                raise
        if ended is not None and not ended.cancelled() and ended.exception() is None:
            result = ended.result()
            if isinstance(result, TickStepResult):
                turns.learn(result)
                self._host.history.sent.replace_in_result(result)
        elif ended is not None:
            self._report_lost(ended, turns.in_turn())
        return WaitForNextTaskResult(ended, started)

    def _report_lost(self, ended: asyncio.Task[Any], tasks: list[NamedTask]) -> None:
        """End the run if `ended` is a step whose result the library does not get, and would wait for."""
        for each in tasks:
            if each.task is ended and isinstance(each, WorkerTask):
                raised = (None if ended.cancelled() else ended.exception()) or asyncio.CancelledError()
                self._host.ending.fail(StepExitError(str(each.step_id), raised))

    def _start(self, pending: PendingStart, *, is_held: bool) -> asyncio.Task[Any]:
        if not isinstance(pending, PendingWorker):
            return asyncio.create_task(pending.coro)
        token = step_run.set(self._host.on_start(pending))
        asking = asking_step.set(execution_of(pending))
        try:
            return self._gate.hold(pending.coro) if is_held else asyncio.create_task(pending.coro)
        finally:
            asking_step.reset(asking)
            step_run.reset(token)


class HostedRuntime(BaseRuntimeDecorator):
    """The library's runtime for the objects of a class, with hosts. Runs without a host behave as usual."""

    def __init__(self) -> None:
        super().__init__(ManyObjectsRuntime())
        # A host lives as long as something waits for its run, and an adapter as long as its run.
        self._hosts: WeakValueDictionary[str, RunObserver] = WeakValueDictionary()
        self._adapters: WeakValueDictionary[str, HostedAdapter] = WeakValueDictionary()

    def run_workflow(
        self, run_id: str, workflow: Workflow, init_state: BrokerState, *rest: Any, **options: Any
    ) -> ExternalRunAdapter:
        """Start a run, with the host of this context if it has one."""
        host = hosting.get()
        if host is not None and host.workflow is not workflow:
            host = None  # a workflow's own `run` may run others first
        # The run's steps inherit the context. Workflows that they run are not hosted.
        token = hosting.set(None)
        watch_token = watching.set(None if host is None else watching.get())
        try:
            if host is not None:
                self._hosts[run_id] = host
            state = (None if host is None else host.history.broker) or init_state
            return super().run_workflow(run_id, workflow, state, *rest, **options)
        finally:
            hosting.reset(token)
            watching.reset(watch_token)

    def register(self, workflow: Workflow) -> RegisteredWorkflow:
        """Return how the library runs `workflow` in this context."""
        registered = super().register(workflow)
        host = self._hosts.get(get_current_run_id() or "")
        if host is None:
            return registered
        steps = contained_steps(registered.steps, is_ending=lambda: host.is_leaving, now=host.clock.now)
        return replace(registered, steps=steps)

    def get_internal_adapter(self, workflow: Workflow) -> InternalRunAdapter:
        """Return the adapter of the run of this context: the same for the run and each of its steps."""
        run_id = get_current_run_id() or ""
        adapter = self._adapters.get(run_id)
        if adapter is not None:
            return adapter
        host = self._hosts.get(run_id)
        if host is None:
            return super().get_internal_adapter(workflow)
        adapter = self._adapters[run_id] = HostedAdapter(super().get_internal_adapter(workflow), host)
        return adapter


def host_runs(workflow: Workflow, runtime: Runtime | None = None) -> None:
    """Let the runs of `workflow` have hosts. Idempotent.

    Args:
        workflow: The workflow.
        runtime: The runtime of another object of its class. None: a new one.
    """
    if not isinstance(workflow.runtime, HostedRuntime):
        install_runtime(workflow, runtime or HostedRuntime())


def _is_step(pending: PendingStart) -> bool:
    return isinstance(pending, PendingWorker)
