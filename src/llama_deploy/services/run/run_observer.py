"""The host of one run: passes on what happens in the run to its inbox, journal and clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from weakref import ref

from workflows import Workflow
from workflows.events import Event, InternalDispatchEvent, StopEvent, UnhandledEvent, WorkflowIdleEvent

from llama_deploy.errors import LlamaDeployError
from llama_deploy.interceptors import Hooks, StepCall
from llama_deploy.services.background import BackgroundTasks
from llama_deploy.services.run.inbox.run_inbox import RunInbox
from llama_deploy.services.run.inbox.waits import Wait
from llama_deploy.services.run.journal.journal_format import RunHistory
from llama_deploy.services.run.journal.run_journal import RunJournal
from llama_deploy.services.run.run_clock import RunClock
from llama_deploy.services.run.run_ending import RunEnding, RunReleasedError
from llama_deploy.services.run.steps.open_steps import NO_STEP, step_run
from llama_deploy.services.run.steps.step_history import StepHistory, current_step
from llama_deploy.services.run.steps.stream_reading import Emit
from llama_deploy.services.values.payloads import StreamedEvent, streamed_event
from llama_deploy.services.values.task_progress import TaskProgress
from llama_deploy.services.values.unwritable import explain_missing
from llama_deploy.supervisor.step_trail import TaskTrail
from llama_deploy.workflow_library import InternalRunAdapter, PendingWorker, TickIdleCheck, WorkflowTick


@dataclass(frozen=True, slots=True)
class RunHooks:
    """What the owner of a run provides while it runs."""

    on_event: Callable[[StreamedEvent], Awaitable[None]]
    """Takes each event that the workflow streams, in order."""
    on_waiting: Callable[[], None]
    """Called when the run begins to wait for something from outside."""
    on_working: Callable[[], None]
    """Called when it continues."""
    hold_lease: Callable[[], Awaitable[None]]
    """Awaited before steps start. Returns when the run is known to belong to this instance."""
    internal_events: bool = False
    """Whether the library's internal events are streamed too."""
    steps: StepHistory | None = None
    """Notes when steps begin and end."""
    on_progress: Callable[[str], None] | None = None
    """Takes what the run says of its progress."""
    trail: TaskTrail | None = None
    """Notes which steps of the run execute. None: this process has no supervisor."""
    on_step: Hooks[StepCall] = ()
    """The hooks around a step."""


@dataclass(eq=False)
class RunObserver:
    """Observes one run. An exception from `attach`, a tick, a step or an event ends the run. `close` it."""

    workflow: Workflow
    """The workflow. Other workflows that its own `run` method may run are not observed."""
    history: RunHistory
    inbox: RunInbox
    journal: RunJournal | None
    """None: the run is not written, and the library need not keep its ticks."""
    clock: RunClock
    ending: RunEnding
    hooks: RunHooks
    is_leaving: bool = field(default=False, init=False)
    """Whether the library ends the run, and cancels its steps."""
    _adapter: InternalRunAdapter | None = field(default=None, init=False)
    _is_resumed: bool = field(default=False, init=False)
    _timers: BackgroundTasks = field(default_factory=lambda: BackgroundTasks("timers of a run"), init=False)

    def attach(self, adapter: InternalRunAdapter) -> None:
        """The run begins; `adapter` is the library's access to it."""
        self.clock.work()  # what has delayed the start does not count
        self._adapter = adapter
        if self.history.left_out and (store := adapter.get_state_store(())) is not None:
            explain_missing(store, self.history.left_out)
        if self.journal is not None:
            self.journal.attach(adapter)

    async def on_tick(self, tick: WorkflowTick) -> None:
        """The run's state has changed by `tick`; none of its effects has happened yet."""
        self.inbox.on_tick(tick)
        self.history.sent.on_tick(tick)
        self.history.waits.on_tick(tick)
        if self.journal is not None:
            # What the library streams because a step has ended belongs to the run of the step.
            run = self.journal.on_tick(tick)
            step_run.set(NO_STEP if run is None else run)

    def on_start(self, step: PendingWorker) -> int | None:
        """A step begins. Return the number of its run. None: nothing is written of the workflow's run."""
        return None if self.journal is None else self.journal.on_start(step)

    async def after_tick(self, tick: WorkflowTick) -> None:
        """The effects of `tick` are scheduled; no step has started yet."""
        await self.inbox.after_tick(tick)

    async def before_steps(self, *, starting: bool) -> None:
        """All ticks so far are processed; `starting` tells whether steps start now."""
        if self.ending.is_over:
            raise RunReleasedError
        if self.history.broker is not None and not self._is_resumed:
            self._is_resumed = True
            await self._resume()
        if starting:
            with self.clock.held():
                await self._before_start()
        elif self.journal is not None:
            await self.journal.before_steps(starting=False)

    async def on_event(self, event: Event) -> None:
        """The run streams an event. The library's internal events are included."""
        self.inbox.on_event(event)
        ending = self.ending
        if isinstance(event, WorkflowIdleEvent):
            ending.dead_end = self.inbox.dead_end()
            if ending.dead_end is None:
                self.clock.wait()
                self.hooks.on_waiting()
            else:
                self.clock.stall()
        elif isinstance(event, UnhandledEvent) and self.clock.is_waiting:
            self.hooks.on_waiting()  # it still waits, although something has come
        if ending.last_event is not None or ending.is_over:
            return
        if isinstance(event, InternalDispatchEvent) and not self.hooks.internal_events:
            return
        if isinstance(event, StopEvent):
            ending.ended(event)
        elif ending.fault is None:
            if isinstance(event, TaskProgress) and self.hooks.on_progress is not None:
                self.hooks.on_progress(event.text)
            with suppress(LlamaDeployError):
                await self._stream(partial(streamed_event, event))

    @property
    def on_item(self) -> Emit:
        """Streams an item of the result of a step. It raises an error if the run has ended, or ends with it.

        It does not refer to this object: the contexts of timers, which hold it, outlive the run.
        """
        this = ref(self)

        async def stream(item: StreamedEvent) -> None:
            observer = this()
            if observer is None or observer.ending.is_over or observer.ending.last_event is not None:
                raise RunReleasedError
            await observer._stream(lambda: item)  # noqa: SLF001 - of this class

        return stream

    async def tell(self, event: StreamedEvent) -> None:
        """Stream an event that is not the workflow's own, unless the run has ended."""
        if self.ending.last_event is None and not self.ending.is_over:
            with suppress(LlamaDeployError):
                step_run.set(NO_STEP)
                await self._stream(lambda: event)

    async def send(self, tick: WorkflowTick) -> None:
        """Send the run a tick, if it has begun."""
        if self._adapter is not None:
            await self._adapter.send_event(tick)

    def close(self) -> None:
        """Stop the timers of the run. Idempotent."""
        self._timers.cancel()

    async def _stream(self, make: Callable[[], StreamedEvent]) -> None:
        try:
            with self.clock.held():  # the event may have to wait until earlier ones are sent
                event = make()
                event.payload.step_run = step_run.get()
                if (step := current_step.get()) is not None:
                    step.events += 1
                await self.hooks.on_event(event)
        except LlamaDeployError as exc:
            self.ending.fail(exc)
            raise
        finally:
            if self.journal is not None:
                self.journal.make_room()

    async def _before_start(self) -> None:
        """Wait until steps may start: the run belongs to this instance, and what they depend on is stored."""
        await self.hooks.hold_lease()
        if self.ending.fault is not None:
            raise self.ending.fault
        if self.clock.is_waiting:
            self.hooks.on_working()
        self.clock.work()
        self.ending.dead_end = None
        if self.journal is not None:
            await self.journal.before_steps(starting=True)

    async def _resume(self) -> None:
        """Tell a resumed run what it cannot know: which waits are over, and whether it waits at all."""
        for wait in self.history.waits.all():
            self._timers.spawn(self._end_wait(wait))
        await self.send(TickIdleCheck())

    async def _end_wait(self, wait: Wait) -> None:
        await asyncio.sleep(max(0.0, wait.due - self.clock.now()))
        await self.send(wait.tick())
