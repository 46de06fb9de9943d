"""The runtime on which hosted workflows run: the library's own runtime, with a host that observes each run.

The library's control loop is a reducer: a tick (an event that came in, the result of a step) changes the
run's state and decides what to do. The host is called for each tick, for each event that is streamed, and
before steps start. That last call is where a run is written to its journal.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any
from weakref import WeakValueDictionary

from workflows import Workflow
from workflows.events import Event

from llama_deploy.services.run.run_observer import RunObserver
from llama_deploy.services.run.step_guard import watching
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
    PullTask,
    Runtime,
    TickStepResult,
    WaitForNextTaskResult,
    WorkflowTick,
    install_runtime,
)

hosting: ContextVar[RunObserver | None] = ContextVar("hosting", default=None)
"""The host of the run that is started next in this context."""


class HostedAdapter(BaseInternalRunAdapterDecorator):
    """A run's access to the library's runtime; calls the host on the way."""

    def __init__(self, decorated: InternalRunAdapter, host: RunObserver) -> None:
        super().__init__(decorated)
        self._host = host
        self._oldest_first: list[NamedTask] = []
        """Tasks that have started and were not returned as completed."""
        host.attach(decorated)

    async def on_tick(self, tick: WorkflowTick) -> None:
        """See `RunObserver.on_tick`."""
        if self._host.journal is not None and not self._host.journal.is_volatile:
            await super().on_tick(tick)
        await self._host.on_tick(tick)

    async def after_tick(self, tick: WorkflowTick) -> None:
        """See `RunObserver.after_tick`."""
        await super().after_tick(tick)
        await self._host.after_tick(tick)

    async def write_to_event_stream(self, event: Event) -> None:
        """See `RunObserver.on_event`. The library's own stream of a hosted run has no readers."""
        await self._host.on_event(event)

    async def send_event(self, tick: WorkflowTick) -> None:
        """Take what a step sends, or what comes from outside. See `SentEvents`."""
        await super().send_event(self._host.history.sent.replace_repeated(tick))

    async def wait_for_next_task(
        self,
        running: list[NamedTask],
        pending: list[PendingStart],
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
    ) -> WaitForNextTaskResult:
        """See `RunObserver.before_steps`."""
        try:
            await self._host.before_steps(starting=any(isinstance(each, PendingWorker) for each in pending))
        except BaseException:
            for each in pending:
                each.coro.close()
            raise
        started: list[NamedTask] = [each.start(asyncio.create_task(each.coro)) for each in pending]
        still = {named.task for named in running}
        self._oldest_first = [named for named in self._oldest_first if named.task in still] + started
        # The library takes the first task that is done, and lists steps in no order. In a fan-out, finished
        # steps would wait for steps that begin and end after them, and not be stored meanwhile.
        in_turn = sorted(self._oldest_first, key=lambda named: isinstance(named, PullTask))
        try:
            waited = await super().wait_for_next_task(in_turn, [], timeout)
        except asyncio.CancelledError:
            # The library knows these tasks only when this call returns, and would leave them running.
            for known in started:
                known.task.cancel()
            raise
        done = waited.completed
        if done is not None and not done.cancelled() and done.exception() is None:
            result = done.result()
            if isinstance(result, TickStepResult):
                self._host.history.sent.replace_in_result(result)
        return WaitForNextTaskResult(done, started)


class HostedRuntime(BaseRuntimeDecorator):
    """The library's runtime for the objects of a class, with hosts. Runs without a host behave as usual."""

    def __init__(self) -> None:
        super().__init__(ManyObjectsRuntime())
        # A host lives as long as something waits for its run.
        self._hosts: WeakValueDictionary[str, RunObserver] = WeakValueDictionary()

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

    def get_internal_adapter(self, workflow: Workflow) -> InternalRunAdapter:
        """Return the adapter of the run that begins in this context."""
        adapter = super().get_internal_adapter(workflow)
        host = self._hosts.get(adapter.run_id)
        return adapter if host is None else HostedAdapter(adapter, host)


def host_runs(workflow: Workflow, runtime: Runtime | None = None) -> None:
    """Let the runs of `workflow` have hosts. Idempotent.

    Args:
        workflow: The workflow.
        runtime: The runtime of another object of its class. None: a new one.
    """
    if not isinstance(workflow.runtime, HostedRuntime):
        install_runtime(workflow, runtime or HostedRuntime())
