"""Applying the orchestrator to tasks and results."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from llama_deploy.control_plane.requests.session_requests import Sessions
from llama_deploy.errors import ConfigError, InvalidRequestError
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.types import TaskDefinition, TaskSubmission
from llama_deploy.types.instance_protocol import AttemptOutcome
from llama_deploy.types.json_values import decode_object
from llama_deploy.types.validation import describe_validation_error


async def route(orchestrator: BaseOrchestrator, sessions: Sessions, task: TaskDefinition) -> TaskSubmission:
    """Return the submission for a task in the format of 0.6: choose its service, decode its arguments.

    Raises:
        InvalidRequestError: The input is not a JSON object, or no service is named.
        ConfigError: The orchestrator did not choose exactly one service.
        SessionNotFoundError: The session does not exist.
    """
    arguments = decode_object(task.input, what="the input with the run arguments")
    state = await _state(orchestrator, sessions, task.session_id)
    messages, changes = await orchestrator.get_next_messages(task, state)
    if len(messages) != 1:
        raise ConfigError(
            f"{type(orchestrator).__name__} chose {len(messages)} services for task {task.task_id};"
            " return exactly one message"
        )
    if orchestrator.keeps_state and changes and task.session_id is not None:
        await sessions.merge_state(task.session_id, changes)
    try:
        return TaskSubmission(
            service_name=messages[0].type,
            arguments=arguments,
            task_id=task.task_id,
            session_id=task.session_id,
        )
    except ValidationError as exc:
        raise InvalidRequestError(f"invalid task: {describe_validation_error(exc)}") from exc


async def keep_result(
    orchestrator: BaseOrchestrator, sessions: Sessions, outcome: AttemptOutcome, *, session_id: str
) -> AttemptOutcome:
    """Return the outcome with the changes of the orchestrator to the session's state."""
    state = await _state(orchestrator, sessions, session_id)
    changes = await orchestrator.add_result_to_state(outcome.task_result, state)
    return outcome.model_copy(update={"session_state": {**(outcome.session_state or {}), **changes}})


async def _state(
    orchestrator: BaseOrchestrator, sessions: Sessions, session_id: str | None
) -> dict[str, Any]:
    if not orchestrator.keeps_state or session_id is None:
        return {}
    return (await sessions.state(session_id)).state
