"""Keeps a workflow's steps from ending the process, and reports which of them are running.

With asyncio, a `SystemExit` or `KeyboardInterrupt` in a task ends the whole loop, and nobody learns of a
`StopIteration` that a thread raises. A guarded step raises an ordinary exception instead, so that only its
run fails. In a forked child it ends the child. Cancellations are left to `contained_steps`.

The library finds a step with `getattr(workflow, name)` when it calls it. The guards are therefore attributes
of the workflow object; its class and other objects stay unchanged. Further objects of the class that are made
for single runs get the guards of the first one.

A `StepWatch` is called when a run's steps begin and end. `running_code` finds out which step a thread
executes, to name the step that blocks the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from types import FrameType, MethodType
from typing import Any, Final

from workflows import Workflow

from llama_deploy.codec import text_of
from llama_deploy.errors import FencedOutError
from llama_deploy.interceptors import Hooks, StepCall, around
from llama_deploy.running_task import running_task
from llama_deploy.services.run.steps import running_steps
from llama_deploy.services.run.steps.forked_steps import generation, leave, only_in
from llama_deploy.services.run.steps.shared_state import run_object
from llama_deploy.services.run.steps.step_history import RunningStep, StepHistory
from llama_deploy.services.run.steps.step_threads import step_threads
from llama_deploy.services.run.steps.stream_reading import Emit, read_streams
from llama_deploy.supervisor.step_trail import TaskTrail
from llama_deploy.types.keys import public_id
from llama_deploy.workflow_library import WaitingForEvent, steps_of

_NOTHING: Final = nullcontext()
_MARK: Final = "__llama_deploy_guarded__"


class StepExitError(Exception):
    """A step raised something that would have ended the process, or made its run wait forever.

    Or something that has no text, which the library would replace by what its `__str__` raises.

    Attributes:
        raised: What it raised.
        step_name: The step.
    """

    def __init__(self, step_name: str, raised: BaseException) -> None:
        text = text_of(raised)
        detail = f": {text}" if text else ""
        super().__init__(f"the step {step_name!r} raised {type(raised).__name__}{detail}")
        self.raised = raised
        self.step_name = step_name


@dataclass(frozen=True, slots=True)
class StepWatch:
    """What is called when the steps of a run begin and end."""

    on_begin: Callable[[], None]
    on_end: Callable[[], None]
    on_change: Callable[[str], None] | None = None
    """Called, in any thread, with what a step has changed in the workflow object."""
    on_item: Emit | None = None
    """Streams an item of a result that is a stream. None: streams are not read."""
    history: StepHistory | None = None
    """Notes when steps begin and end."""
    trail: TaskTrail | None = None
    """Notes which steps execute, for the supervisor of this process. None: it has no supervisor."""
    point: Callable[[], str | None] | None = None
    """Returns where the journal of the run is, and does not keep the journal. None: it has none."""
    hooks: Hooks[StepCall] = ()
    """The hooks around a step."""


watching: ContextVar[StepWatch | None] = ContextVar("watching", default=None)
"""The watch of the runs that are started in this context."""


def guard_steps(workflow: Workflow) -> None:
    """Guard all steps of `workflow`. Idempotent."""
    for name, step in steps_of(workflow).items():
        current = vars(workflow).get(name, step)
        if not hasattr(current, _MARK):
            # The prebuilt agents are pydantic models, which reject attributes that they do not declare.
            vars(workflow)[name] = _guarded(workflow, name, step)


def guard_like(first: Workflow, workflow: Workflow) -> None:
    """Guard all steps of `workflow` as those of `first`, a guarded object of the same class."""
    known, attributes = vars(first), vars(workflow)
    for name in steps_of(first):
        if hasattr(attributes.get(name), _MARK):
            continue
        guard = known.get(name)
        if guard is None:  # a step that was added to the class since
            guard_steps(first)
            guard = known[name]
        attributes[name] = MethodType(guard.__func__, workflow) if inspect.ismethod(guard) else guard


def unguard(workflow: Workflow, *, like: Workflow) -> None:
    """Remove the guards from an object whose run has ended: they refer to it, and would keep it in memory.

    Args:
        workflow: The object.
        like: The object whose guards it got with `guard_like`.
    """
    attributes = vars(workflow)
    for name in steps_of(like):
        if hasattr(attributes.get(name), _MARK):
            del attributes[name]


def _guarded(workflow: Workflow, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
    guarded = _guard(name, getattr(step, "__func__", step))
    setattr(guarded, _MARK, True)
    # The library calls bound methods with the instance, and free functions without.
    return MethodType(guarded, workflow) if inspect.ismethod(step) else guarded


def _guard(step_name: str, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    is_async = inspect.iscoroutinefunction(function)
    call = _in_loop(step_name, function) if is_async else _in_thread(step_name, function)

    @functools.wraps(function)
    async def guarded_step(*args: Any, **kwargs: Any) -> Any:
        watch, forks = watching.get(), generation()
        task = running_task.get()  # `running_code` reads it from the frame
        # A thread may outlive the call.
        running = running_steps.begin(step_name) if is_async else None
        noted = _begin(watch, step_name)
        raised: BaseException | None = None
        try:
            with (
                _NOTHING
                if watch is None or not watch.hooks
                else around(watch.hooks, StepCall(task, step_name)),
                _compared(step_name, args, watch),
            ):
                trail = None if watch is None else watch.trail
                returned = await call(forks, trail, *args, **kwargs)
                if watch is not None and watch.on_item is not None:
                    await read_streams(returned, watch.on_item)
                return returned
        except (asyncio.CancelledError, GeneratorExit) as exc:
            raised = exc
            raise
        except BaseException as exc:
            if forks != generation():
                leave(step_name, exc)
            raised = exc
            if _is_ordinary(exc):
                raise
            raise StepExitError(step_name, exc) from exc
        finally:
            running_steps.end(running)
            if forks != generation():
                leave(step_name)
            _end(watch, noted, raised)
            raised = None  # the frame is part of its traceback

    return guarded_step


def _begin(watch: StepWatch | None, step_name: str) -> RunningStep | None:
    if watch is None:
        return None
    watch.on_begin()
    if watch.history is None:
        return None
    return watch.history.begin(step_name, point=None if watch.point is None else watch.point())


def _end(watch: StepWatch | None, step: RunningStep | None, raised: BaseException | None) -> None:
    if watch is None:
        return
    if watch.history is not None and step is not None:
        # A step that waits for an event raises this, and is called again when the event has come.
        if isinstance(raised, WaitingForEvent):
            watch.history.forget(step)
        else:
            watch.history.end(step, raised)
    watch.on_end()


def _in_loop(step_name: str, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return a step that awaits a coroutine function, in the process in which it began."""

    def call(forks: int, trail: TaskTrail | None, /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        mark = None if trail is None else trail.in_loop(step_name)
        return only_in(forks, step_name, function(*args, **kwargs), mark)

    return call


def _in_thread(step_name: str, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return a step that calls a function in a thread: of its service, or of the loop as the library does."""

    def call(forks: int, trail: TaskTrail | None, /, *args: Any, **kwargs: Any) -> Any:
        running = running_steps.begin(step_name)
        try:
            with _NOTHING if trail is None else trail.in_thread(step_name):
                return function(*args, **kwargs)
        except BaseException as exc:
            if forks != generation():
                leave(step_name, exc)
            # A future cannot hold a StopIteration: whoever waits for it would not learn of it.
            if _is_ordinary(exc) and not isinstance(exc, StopIteration):
                raise
            raise StepExitError(step_name, exc) from exc
        finally:
            running_steps.end(running)
            if forks != generation():
                leave(step_name)

    async def call_in_thread(forks: int, trail: TaskTrail | None, /, *args: Any, **kwargs: Any) -> Any:
        run = functools.partial(copy_context().run, call, forks, trail, *args, **kwargs)
        threads = step_threads.get()
        if threads is None:
            return await asyncio.get_running_loop().run_in_executor(None, run)
        return await threads.run(step_name, run)

    return call_in_thread


def _is_ordinary(error: BaseException) -> bool:
    """Whether the library takes an exception as it is."""
    # A step that lost something else does not mean that its run belongs to another instance.
    if not isinstance(error, Exception) or isinstance(error, FencedOutError):
        return False
    try:
        str(error)
    except BaseException:  # noqa: BLE001 - a user's `__str__` may raise anything
        return False
    return True


def _compared(
    step_name: str, args: Sequence[object], watch: StepWatch | None
) -> AbstractContextManager[None]:
    """Notice what a step changes in its workflow object."""
    current = run_object.get()
    if current is None or not args:
        return _NOTHING
    return current.compared(args[0], step_name, None if watch is None else watch.on_change)


@dataclass(frozen=True, slots=True)
class RunningCode:
    """What a thread executes."""

    place: str
    """File and line. Empty: the thread has just ended."""
    step_name: str | None = None
    """The guarded step that it belongs to."""
    task_id: str | None = None
    """The task whose step it is."""

    def __str__(self) -> str:
        if not self.place:
            return "code that has just ended"
        if self.step_name is None:
            return self.place
        task = "" if self.task_id is None else f" of task {public_id(self.task_id)}"
        return f"the step {self.step_name!r}{task} at {self.place}"


def running_code(thread_id: int) -> RunningCode:
    """Return what a thread executes now."""
    # This is documented, although its name begins with an underscore.
    frame = sys._current_frames().get(thread_id)  # noqa: SLF001
    if frame is None:
        return RunningCode("")
    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    for outer in _outwards(frame):
        if outer.f_code.co_name == "guarded_step" and outer.f_code.co_filename == __file__:
            task = outer.f_locals.get("task")
            return RunningCode(
                place, outer.f_locals["step_name"], None if task is None else task.key or task.task_id
            )
    return RunningCode(place)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
