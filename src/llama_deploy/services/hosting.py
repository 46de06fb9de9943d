"""The runtime on which hosted workflows run: the library's own one, with a host that looks on.

The library's control loop is a reducer: a tick (an event that came in, the result of a step) changes the
run's state and says what is to be done. The host is told of each tick, of each event that is streamed, and,
before any step starts, that there are steps to start; that is where a run is written down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from workflows import Workflow
from workflows.context import BaseSerializer
from workflows.events import Event, StartEvent

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
    WaitForNextTaskResult,
    WaitResult,
    WaitResultTick,
    WorkflowTick,
    install_runtime,
)

T = TypeVar("T")


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
    def receipts(self) -> Sequence[WorkflowTick]:
        """What the run is to learn before its steps begin: what they had sent when they began earlier."""
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
        self._receipts: deque[WorkflowTick] | None = None
        """What the run is to learn before its steps begin again. None: that is not known yet."""
        self._held_back: asyncio.Event | None = None
        """Set when the steps may begin that were started before the run had learned that."""
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

    async def wait_receive(self, timeout_seconds: float | None = None) -> WaitResult:
        """Return what the run is to deal with next."""
        if self._receipts:
            return WaitResultTick(tick=self._receipts.popleft())
        return await super().wait_receive(timeout_seconds)

    async def wait_for_next_task(
        self,
        running: list[NamedTask],
        pending: list[PendingStart],
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
    ) -> WaitForNextTaskResult:
        """See `RunHost.before_steps`."""
        if self._receipts is None:
            self._receipts = deque(self._host.receipts)
        if self._receipts and self._held_back is None:
            self._held_back = asyncio.Event()
        starting = self._held_back is not None or any(isinstance(each, PendingWorker) for each in pending)
        try:
            if not self._receipts:
                await self._host.before_steps(starting=starting)
        except BaseException:
            for each in pending:
                each.coro.close()
            raise
        started: list[NamedTask] = [each.start(self._start(each)) for each in pending]
        if self._held_back is not None and not self._receipts:
            self._held_back.set()
            self._held_back = None
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
        return WaitForNextTaskResult(waited.completed, started)

    def _start(self, pending: PendingStart) -> asyncio.Task[Any]:
        if self._held_back is None or not isinstance(pending, PendingWorker):
            return asyncio.create_task(pending.coro)
        step = asyncio.create_task(_after(self._held_back, pending.coro))
        step.add_done_callback(lambda _: pending.coro.close())  # it may have been cancelled before it began
        return step


async def _after(event: asyncio.Event, coro: Coroutine[Any, Any, T]) -> T:
    await event.wait()
    return await coro


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
