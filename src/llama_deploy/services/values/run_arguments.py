"""The arguments of a run: checked before anything runs, and passed to the workflow."""

from __future__ import annotations

import inspect
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from workflows import Context, Workflow
from workflows.events import StartEvent
from workflows.handler import WorkflowHandler

from llama_deploy.errors import InvalidRequestError
from llama_deploy.services.values.payloads import build_event
from llama_deploy.types import generate_id
from llama_deploy.types.run_input import START_EVENT, start_fields
from llama_deploy.types.validation import describe_validation_error

_RESERVED: Final = ("ctx", "run_id", START_EVENT)
"""Parameters of `Workflow.run` that control the library; clients must not set them."""


@dataclass(frozen=True, slots=True)
class RunCall:
    """A call of a workflow with checked arguments."""

    workflow: Workflow
    arguments: dict[str, Any]
    start_event: StartEvent | None
    """None: the workflow has a `run` method of its own, which takes the arguments by name."""

    @classmethod
    def prepare(cls, workflow: Workflow, arguments: dict[str, Any]) -> RunCall:
        """Check `arguments`, either `{field: value}` or `{"start_event": {field: value}}`.

        Raises:
            InvalidRequestError: They are not valid; the text says which field and why.
        """
        fields = start_fields(arguments, workflow.start_event_class.model_fields)
        if type(workflow).run is not Workflow.run:
            _check_signature(workflow, fields)
            return cls(workflow, fields, None)
        event = build_event(workflow.start_event_class, fields)
        if not isinstance(event, StartEvent):
            raise InvalidRequestError(f"{type(event).__name__} is not a start event")
        return cls(workflow, {}, event)

    def start(self, ctx: Context | None) -> WorkflowHandler | Coroutine[Any, Any, WorkflowHandler]:
        """Start the run. A coroutine awaits the workflow's own `run` method, see `start_own`.

        Args:
            ctx: Holds the session's state. None: there is none.
        """
        if self.start_event is None:
            return self.start_own(ctx)
        # The library makes an id with one call of the system for each letter.
        return self.workflow.run(ctx=ctx, start_event=self.start_event, run_id=generate_id())

    async def start_own(self, ctx: Context | None) -> WorkflowHandler:
        """Start the run with the workflow's own `run` method.

        Raises:
            InvalidRequestError: It rejects the arguments.
            Exception: Whatever it raises.
        """
        context: dict[str, Any] = {} if ctx is None or not self._takes_context() else {"ctx": ctx}
        try:
            started: object = self.workflow.run(**context, **self.arguments)
            if inspect.iscoroutine(started):
                started = await started
        except ValidationError as exc:
            raise InvalidRequestError(
                f"{type(self.workflow).__name__}.run: {describe_validation_error(exc)}"
            ) from exc
        if not isinstance(started, WorkflowHandler):
            raise TypeError(
                f"{type(self.workflow).__name__}.run returned {type(started).__name__}; "
                "a workflow's `run` must return the handler of Workflow.run"
            )
        return started

    def _takes_context(self) -> bool:
        parameters = inspect.signature(self.workflow.run).parameters
        return "ctx" in parameters or any(
            parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
        )


def _check_signature(workflow: Workflow, fields: dict[str, Any]) -> None:
    name = f"{type(workflow).__name__}.run"
    taken = [field for field in _RESERVED if field in fields]
    if taken:
        raise InvalidRequestError(f"{name}: {', '.join(taken)}: a client cannot set this argument")
    try:
        inspect.signature(workflow.run).bind(**fields)
    except TypeError as exc:
        raise InvalidRequestError(f"{name}: {exc}") from exc
