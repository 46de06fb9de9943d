"""The runtime on which hosted workflows run: the library's own one, with a host that looks on.

The library's control loop is a reducer: a tick (an event that came in, the result of a step) changes the
run's state and says what is to be done. The host is told of each tick, of each event that is streamed, and,
before any step starts, that there are steps to start; that is where a run is written down.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import WeakValueDictionary

from workflows import Workflow
from workflows.context import BaseSerializer
from workflows.events import Event, StartEvent

from llama_deploy.services.run.sent_events import Sends
from llama_deploy.workflow_library import (
    BaseInternalRunAdapterDecorator,
    BaseRuntimeDecorator,
    BasicRuntime,
    BrokerState,
    ExternalRunAdapter,
    InternalRunAdapter,
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


class RunHost(Protocol):
    """What looks on while a workflow runs. Whatever its methods raise ends the run."""

    @property
    def workflow(self) -> Workflow:
        """Whose run it is."""
        ...

    @property
    def keeps_ticks(self) -> bool:
        """Whether the library is to keep the run's ticks, from which a snapshot is made."""
        ...

    @property
    def broker(self) -> BrokerState | None:
        """From what the run goes on, in place of what its context holds. None: from that."""
        ...

    @property
    def sends(self) -> Sends:
        """What the steps of the run have sent: what one sends again is not taken again."""
        ...

    def attach(self, adapter: InternalRunAdapter) -> None:
        """The run begins; `adapter` is the library's way into it. Called twice, with the same way."""
        ...

    async def on_tick(self, tick: WorkflowTick) -> None:
        """The run's state has changed by `tick`; nothing of what follows from it has happened yet."""
        ...

    async def after_tick(self, tick: WorkflowTick) -> None:
        """What follows from `tick` was put in order, but no step was started yet."""
        ...

    async def before_steps(self, *, starting: bool) -> None:
        """All ticks that were there are dealt with; `starting` tells whether steps start now."""
        ...

    async def on_event(self, event: Event) -> None:
        """The run streams an event, the library's internal ones included."""
        ...


hosting: ContextVar[RunHost | None] = ContextVar("hosting", default=None)
"""The host of the run that is started next in this context."""


class HostedAdapter(BaseInternalRunAdapterDecorator):
    """The way of a run into the library's runtime, past its host."""

    def __init__(self, decorated: InternalRunAdapter, host: RunHost) -> None:
        super().__init__(decorated)
        self._host = host
        self._oldest_first: list[NamedTask] = []
        """What has been started and was not returned as completed."""
        host.attach(decorated)

    async def on_tick(self, tick: WorkflowTick) -> None:
        """See `RunHost.on_tick`."""
        if self._host.keeps_ticks:
            await super().on_tick(tick)
        await self._host.on_tick(tick)

    async def after_tick(self, tick: WorkflowTick) -> None:
        """See `RunHost.after_tick`."""
        await super().after_tick(tick)
        await self._host.after_tick(tick)

    async def write_to_event_stream(self, event: Event) -> None:
        """See `RunHost.on_event`. Nobody else reads the stream of a hosted run."""
        await self._host.on_event(event)

    async def send_event(self, tick: WorkflowTick) -> None:
        """Take what a step sends, or something from outside. See `RunHost.sends`."""
        await super().send_event(self._host.sends.pass_on(tick))

    async def wait_for_next_task(
        self,
        running: list[NamedTask],
        pending: list[PendingStart],
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
    ) -> WaitForNextTaskResult:
        """See `RunHost.before_steps`."""
        try:
            await self._host.before_steps(starting=any(isinstance(each, PendingWorker) for each in pending))
        except BaseException:
            for each in pending:
                each.coro.close()
            raise
        started: list[NamedTask] = [each.start(asyncio.create_task(each.coro)) for each in pending]
        still = {named.task for named in running}
        self._oldest_first = [named for named in self._oldest_first if named.task in still] + started
        # The library takes the first one that is done, and lists steps in no order: in a fan-out, finished
        # ones would wait for those that begin and end after them, and not be stored meanwhile.
        in_turn = sorted(self._oldest_first, key=lambda named: isinstance(named, PullTask))
        try:
            waited = await super().wait_for_next_task(in_turn, [], timeout)
        except asyncio.CancelledError:
            # The library would leave alone what it learns of only when this returns.
            for known in started:
                known.task.cancel()
            raise
        done = waited.completed
        if done is not None and not done.cancelled() and done.exception() is None:
            result = done.result()
            if isinstance(result, TickStepResult):
                self._host.sends.clean(result)
        return WaitForNextTaskResult(done, started)


class HostedRuntime(BaseRuntimeDecorator):
    """The library's basic runtime for runs with a host; others run on it as ever."""

    def __init__(self) -> None:
        super().__init__(BasicRuntime())
        # A host lives as long as whoever waits for its run.
        self._hosts: WeakValueDictionary[str, RunHost] = WeakValueDictionary()

    def run_workflow(
        self,
        run_id: str,
        workflow: Workflow,
        init_state: BrokerState,
        start_event: StartEvent | None = None,
        serialized_state: dict[str, Any] | None = None,
        serializer: BaseSerializer | None = None,
    ) -> ExternalRunAdapter:
        """Start a run, with the host that this context names, if it names one."""
        host = hosting.get()
        if host is not None and host.workflow is not workflow:
            host = None  # a workflow's own `run` may run others first
        # The run's steps inherit the context, and may run workflows of their own, which are not hosted.
        token = hosting.set(None)
        try:
            if host is not None:
                self._hosts[run_id] = host
            return super().run_workflow(
                run_id,
                workflow,
                (None if host is None else host.broker) or init_state,
                start_event=start_event,
                serialized_state=serialized_state,
                serializer=serializer,
            )
        finally:
            hosting.reset(token)

    def get_internal_adapter(self, workflow: Workflow) -> InternalRunAdapter:
        """Return the way of the run that begins in this context."""
        adapter = super().get_internal_adapter(workflow)
        host = self._hosts.get(adapter.run_id)
        return adapter if host is None else HostedAdapter(adapter, host)


def host_runs(workflow: Workflow) -> None:
    """Let the runs of `workflow` have hosts. Doing it again changes nothing."""
    runtime: Runtime = workflow.runtime
    if not isinstance(runtime, HostedRuntime):
        install_runtime(workflow, HostedRuntime())
