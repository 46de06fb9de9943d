"""A workflow that a service hosts, with what all its runs share, and the object that each run works with."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from weakref import ref

from pydantic import SecretStr
from workflows import Context, Workflow
from workflows.events import Event
from workflows.handler import WorkflowHandler

from llama_deploy.errors import ConfigError
from llama_deploy.services.run.hosting import host_runs
from llama_deploy.services.run.journal.journal_format import JournalFormat
from llama_deploy.services.run.steps.shared_state import RUN, RunObject, SharedState, run_object
from llama_deploy.services.run.steps.step_guard import guard_like, guard_steps, unguard, watching
from llama_deploy.services.run.workflow_factory import AnyWorkflow, WorkflowFactory
from llama_deploy.services.values.answer_forms import AnswerForms
from llama_deploy.services.values.class_shapes import class_shapes
from llama_deploy.services.values.payloads import EventRegistry
from llama_deploy.services.values.run_arguments import RunCall
from llama_deploy.services.values.session_state import StateCodec
from llama_deploy.services.values.writing import Writing
from llama_deploy.types.workflow_shape import WorkflowShape
from llama_deploy.workflow_library import (
    answer_classes,
    cache_steps,
    describe_class,
    fingerprint,
    has_steps_of_its_own,
    leave_out_spans,
    library_version,
    share_class,
    shares_class,
    step_shapes,
    take_timeout,
    unshare_class,
)

_IS_SHARED: Final = "__llama_deploy_shared__"
"""The attribute of a hosted object that tells whether several runs use it."""


@dataclass(frozen=True, slots=True)
class HostedWorkflow:
    """A workflow whose runs have hosts, and how its values are read and written."""

    source: Workflow | WorkflowFactory
    """The object of all runs, or what makes the object of each run."""
    first: Workflow
    """Describes the workflow: the object of all runs, or the first one that was made, which does not run."""
    shared: SharedState
    """Warns if runs change an object that they share."""
    events: EventRegistry
    forms: AnswerForms
    """Describes the answers to questions."""
    answers: Sequence[type[Event]]
    """The classes of the events that steps take from outside."""
    states: StateCodec
    journals: JournalFormat

    @classmethod
    def prepare(
        cls,
        workflow: AnyWorkflow,
        *,
        service_name: str = "",
        extra: Sequence[type] = (),
        keys: Iterable[SecretStr] = (),
        strict: bool = False,
    ) -> HostedWorkflow:
        """Prepare a workflow for hosting. Several services may prepare and share one.

        Args:
            workflow: A workflow, which all runs share; or a class or a function that makes one for each run.
            service_name: The service, for the log.
            extra: Further classes that its values may have.
            keys: Sign what is stored.
            strict: Whether a value of its state that cannot be written is an error.

        Raises:
            ConfigError: The class or function does not return a workflow.
        """
        source = WorkflowFactory.of(workflow)
        first = source.first if isinstance(source, WorkflowFactory) else source
        _prepare(first)
        if isinstance(source, WorkflowFactory):
            vars(first).setdefault(_IS_SHARED, False)
            describe_class(first)
        else:
            vars(first)[_IS_SHARED] = True
        writing = Writing(first, extra=extra, keys=list(keys))
        states = StateCodec(first, writing, strict=strict)
        shape = WorkflowShape(
            fingerprint=fingerprint(first),
            library_version=library_version(),
            steps=step_shapes(first),
            classes=class_shapes(writing.classes),
            state=states.class_name,
        )
        events = EventRegistry(first, extra)
        return cls(
            source=source,
            first=first,
            shared=SharedState(service_name),
            events=events,
            forms=AnswerForms(events.classes.values()),
            answers=answer_classes(first),
            states=states,
            journals=JournalFormat(first.workflow_name, writing, states, shape),
        )

    @contextmanager
    def object_of_run(self) -> Iterator[Workflow]:
        """Return the workflow object with which a run works until the end of this context.

        Raises:
            ConfigError: The factory has failed, or has made something that this service does not host.
        """
        workflow = self.source if isinstance(self.source, Workflow) else self._make(self.source)
        token = run_object.set(RunObject(ref(workflow), self.shared, is_shared=vars(workflow)[_IS_SHARED]))
        try:
            yield workflow
        finally:
            run_object.reset(token)
            if not vars(workflow)[_IS_SHARED] and shares_class(self.first, workflow):
                unguard(workflow, like=self.first)

    def _make(self, factory: WorkflowFactory) -> Workflow:
        """Return a prepared object for one run. One that was returned before is shared from now on."""
        workflow, first = factory(), self.first
        attributes = vars(workflow)
        if _IS_SHARED in attributes:
            attributes[_IS_SHARED] = True
            guard_like(first, workflow)  # they may have been removed
            return workflow
        if type(workflow) is not type(first):
            raise ConfigError(
                f"{factory.name} made a {type(workflow).__qualname__}, and the service hosts the class "
                f"{type(first).__qualname__}; it must always make objects of one class"
            )
        attributes[_IS_SHARED] = False
        if factory.has_own_steps or has_steps_of_its_own(workflow):
            unshare_class(workflow)
            _prepare(workflow)
            if fingerprint(workflow) != self.journals.shape.fingerprint:
                raise ConfigError(
                    f"{factory.name} made a {type(workflow).__qualname__} with other steps than the first "
                    "one; it must always make objects with the same steps"
                )
            return workflow
        take_timeout(workflow)
        share_class(first, workflow)
        guard_like(first, workflow)
        host_runs(workflow, first.runtime)
        return workflow


def _prepare(workflow: Workflow) -> None:
    guard_steps(workflow)
    cache_steps(workflow)
    leave_out_spans(workflow)
    host_runs(workflow)
    take_timeout(workflow)


def start_run(call: RunCall, ctx: Context | None) -> WorkflowHandler | Coroutine[Any, Any, WorkflowHandler]:
    """Start a run. A coroutine awaits the workflow's own `run` method."""
    if call.start_event is not None:
        return call.start(ctx)
    return _start_own(call, ctx)


async def _start_own(call: RunCall, ctx: Context | None) -> WorkflowHandler:
    """Notice what the workflow's own `run` method changes in the workflow object."""
    current, watch = run_object.get(), watching.get()
    if current is None:
        return await call.start_own(ctx)
    with current.compared(current.workflow(), RUN, None if watch is None else watch.on_change):
        return await call.start_own(ctx)
