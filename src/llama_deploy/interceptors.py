"""Hooks around what clients, control planes and workers do with a task.

Derive from one of the three classes and override what you need. Each hook gets a call, and returns a context
manager that surrounds the work; most are written with `contextlib.contextmanager`:

Example:
    ```python
    from collections.abc import Iterator
    from contextlib import contextmanager

    from llama_deploy import WorkflowService
    from llama_deploy.interceptors import StepCall, WorkerInterceptor


    class Timing(WorkerInterceptor):
        @contextmanager
        def step(self, call: StepCall) -> Iterator[None]:
            began = time.monotonic()
            try:
                yield
            finally:
                print(call.step_name, time.monotonic() - began)


    service = WorkflowService(workflow, queue, config, interceptors=[Timing()])
    ```

What a hook raises before it yields refuses the work; how it is reported stands at each hook. It must let the
errors of the work pass. The hooks run in the event loop, once for each task or step: they must not wait.
Packages declare interceptors as entry points, see `installed`. Hooks of installed interceptors are the outer
ones.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final, TypeAlias, TypeVar

from llama_deploy.errors import ConfigError, InternalServerError
from llama_deploy.messages import QueueMessage
from llama_deploy.running_task import TaskInfo
from llama_deploy.types import TaskStatus, TaskSubmission, TaskView
from llama_deploy.types.extras import described, load_entry_point

logger = logging.getLogger(__name__)

C = TypeVar("C")
I = TypeVar("I")  # noqa: E741 - an interceptor

Around: TypeAlias = AbstractContextManager[object]
"""Surrounds a piece of work."""
Hooks: TypeAlias = Sequence[Callable[[C], Around]]
"""One hook of several interceptors, the outermost first."""

_NOTHING: Final[Around] = nullcontext()


@dataclass(slots=True, eq=False)
class SubmitCall:
    """A client submits a task, and perhaps waits for its end."""

    submission: TaskSubmission
    waits: bool
    """Whether the call lasts until the task has ended, as `Client.run` does."""
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with the requests. A hook may add some, such as `traceparent`."""
    view: TaskView | None = None
    """The task, once it is accepted; with `waits`, once it has ended."""


@dataclass(slots=True, eq=False)
class AcceptCall:
    """A control plane accepts a task."""

    task_id: str
    session_id: str | None
    """None: the task gets a session of its own."""
    service_name: str
    """Empty: the orchestrator knows."""
    parent_task_id: str | None
    """The task whose step has submitted this one."""
    trace: str | None
    """The W3C `traceparent` that is stored with the task, and travels with its attempts. A hook may replace
    it."""
    status: TaskStatus | None = None
    """That of the task, once it is accepted."""
    tenant: str = ""
    """To which tenant the task belongs. Empty: to the default one."""
    subject: str | None = None
    """To which user of the tenant it belongs. None: to nobody in particular. Until the task is accepted, this
    is the user to whom the caller is bound: a task belongs to the user of its session, whoever submits it."""
    retry_of: str | None = None
    """The ended task that this one tries again. None: it was submitted."""


@dataclass(slots=True, eq=False)
class DispatchCall:
    """A control plane hands the message of an attempt to the queue."""

    topic: str
    message: QueueMessage
    """Its `data` names task and attempt. A hook may set some of its `headers`, which the attempt sees. They
    are still there if it is published again."""


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """A task has ended. All times are aware, UTC, by the clock of the control plane."""

    task_id: str
    session_id: str
    service_name: str
    status: TaskStatus
    attempts: int
    """How many attempts it has had."""
    created_at: datetime
    started_at: datetime | None
    """When its first attempt was claimed. None: never."""
    finished_at: datetime | None
    trace: str | None
    """See `AcceptCall.trace`."""
    tenant: str = ""
    """To which tenant the task belongs. Empty: to the default one."""
    subject: str | None = None
    """To which user of the tenant it belongs. None: to nobody in particular."""


@dataclass(frozen=True, slots=True)
class AttemptLoss:
    """An attempt was taken from an instance that has died, was silent for too long, or does not hold it."""

    task_id: str
    session_id: str
    service_name: str
    attempt: int
    """Its number."""
    claimed_at: datetime | None
    """When the instance had claimed it."""
    lost_at: datetime
    is_charged: bool
    """Whether the task is charged with the death of the process; see `TaskSubmission.max_attempts`."""
    trace: str | None
    """See `AcceptCall.trace`."""
    tenant: str = ""
    """To which tenant the task belongs. Empty: to the default one."""
    subject: str | None = None
    """To which user of the tenant it belongs. None: to nobody in particular."""


@dataclass(slots=True, eq=False)
class AttemptCall:
    """A worker executes an attempt that it has claimed, and reports its outcome."""

    task: TaskInfo
    headers: Mapping[str, str]
    """Those of the message that has offered the attempt; see `DispatchCall`."""
    status: TaskStatus | None = None
    """How it has ended, once it has. `waiting`: its run is parked. None: it has been stopped because it
    belongs to another instance, or is handed back."""
    is_handed_back: bool = False
    """Whether this instance gives it back because it stops."""


@dataclass(frozen=True, slots=True)
class StepCall:
    """A worker runs a step of a workflow."""

    task: TaskInfo | None
    """None: it runs outside of a task."""
    step_name: str


@dataclass(frozen=True, slots=True)
class PublishCall:
    """A worker sends a report to the control plane: events of an attempt, or its outcome."""

    message: QueueMessage
    """Its `action` is `task_stream` or `completed_task`; its `data` holds the token of the attempt, which is
    a secret."""


class ClientInterceptor:
    """Hooks of a client. One object may serve several clients and threads."""

    def submit(self, call: SubmitCall) -> Around:  # noqa: ARG002 - for those who override it
        """Surround the submission of a task. An exception goes to the caller of the client."""
        return _NOTHING


class ControlPlaneInterceptor:
    """Hooks of a control plane."""

    def submit(self, call: AcceptCall) -> Around:  # noqa: ARG002 - as above
        """Surround the acceptance of a task, until it is durable.

        A `LlamaDeployError` is the answer to the request, and the task is not accepted.
        """
        return _NOTHING

    def dispatch(self, call: DispatchCall) -> Around:  # noqa: ARG002 - as above
        """Surround the publication of an attempt.

        After an exception before that, it is tried again later. What is raised after it is logged.
        """
        return _NOTHING

    def lost(self, loss: AttemptLoss) -> None:
        """An attempt is lost, and the task moves on, or fails. What it raises is logged."""

    def ended(self, end: TaskEnd) -> None:
        """A task has ended, and this is durable. What it raises is logged."""


class WorkerInterceptor:
    """Hooks of a worker. One object may serve several services of a process."""

    def attempt(self, call: AttemptCall) -> Around:  # noqa: ARG002 - as above
        """Surround an attempt, from its claim until its outcome is reported.

        An exception before that fails the task. The context variables that a hook sets are those of the run.
        """
        return _NOTHING

    def step(self, call: StepCall) -> Around:  # noqa: ARG002 - as above
        """Surround a step. An exception counts as raised by the step, also for its retry policy.

        A step that waits for an event ends with an exception of the workflow library, and begins again when
        the event has come.
        """
        return _NOTHING

    def publish(self, call: PublishCall) -> Around:  # noqa: ARG002 - as above
        """Surround a report, with its retries.

        An exception before that rejects it, as the queue may: the task fails. What is raised after it is
        logged.
        """
        return _NOTHING


def hooks_of(interceptors: Sequence[object], base: type, name: str) -> Hooks[Any]:
    """Return one hook of those interceptors that override it, so that the others cost nothing.

    Args:
        interceptors: The interceptors, the outermost first.
        base: Their base class.
        name: The name of the hook.

    Raises:
        ConfigError: One of them is not of this class.
    """
    default = getattr(base, name)
    for each in interceptors:
        if not isinstance(each, base):
            raise ConfigError(
                f"the interceptor {each!r} is not an object of a class that derives from {base.__name__}"
            )
    return tuple(
        getattr(each, name) for each in interceptors if getattr(type(each), name, None) is not default
    )


def around(hooks: Hooks[C], call: C) -> Around:
    """Return a context manager that enters all hooks for a call, the first one outermost."""
    if not hooks:
        return _NOTHING
    return hooks[0](call) if len(hooks) == 1 else _all(hooks, call)


@contextmanager
def _all(hooks: Hooks[C], call: C) -> Iterator[None]:
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook(call))
        yield


async def surround(hooks: Hooks[C], call: C, work: Callable[[], Awaitable[None]]) -> None:
    """Do some work within hooks. No hook can hide whether it is done: what they raise after it is logged.

    Raises:
        InternalServerError: A hook has raised something before the work.
        LlamaDeployError: The work has raised it, whatever hooks have made of it.
    """
    failure: BaseException | None = None
    is_done = False
    try:
        with around(hooks, call):
            try:
                await work()
            except BaseException as exc:
                failure = exc
                raise
            is_done = True
    except Exception as exc:
        if is_done:
            logger.exception(
                "an interceptor has failed after its work was done", extra={"action": "interceptor_failed"}
            )
        elif failure is None:
            raise InternalServerError(f"an interceptor failed with {type(exc).__name__}: {exc}") from exc
    if failure is not None:
        raise failure


def client_interceptors() -> Sequence[ClientInterceptor]:
    """Return what packages have declared as `llama_deploy.client_interceptors`; see `installed`."""
    return installed("llama_deploy.client_interceptors", ClientInterceptor)


def control_plane_interceptors() -> Sequence[ControlPlaneInterceptor]:
    """Return what packages have declared as `llama_deploy.control_plane_interceptors`; see `installed`."""
    return installed("llama_deploy.control_plane_interceptors", ControlPlaneInterceptor)


def worker_interceptors() -> Sequence[WorkerInterceptor]:
    """Return what packages have declared as `llama_deploy.worker_interceptors`; see `installed`."""
    return installed("llama_deploy.worker_interceptors", WorkerInterceptor)


@cache
def installed(group: str, base: type[I]) -> Sequence[I]:
    """Return the interceptors that packages have declared, in the order of their names.

    An entry point names a class, or a function without arguments, which is called once in this process.

    Args:
        group: The group of the entry points.
        base: What the interceptors must be.

    Raises:
        ConfigError: One of them cannot be loaded, or returns something else.
    """
    found = sorted(entry_points(group=group), key=lambda each: each.name)
    made: list[I] = []
    for each in found:
        factory = load_entry_point(each, what="interceptor")
        interceptor = factory() if callable(factory) else factory
        if not isinstance(interceptor, base):
            raise ConfigError(
                f"the interceptor {each.name!r}: {described(each)} does not return a {base.__name__}"
            )
        made.append(interceptor)
    return tuple(made)
