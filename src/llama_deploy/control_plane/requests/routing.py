"""Applying the orchestrator to tasks and results."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from llama_deploy.control_plane.requests.session_requests import Sessions
from llama_deploy.errors import ConfigError, InvalidRequestError
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.types import TaskDefinition, TaskResult, TaskSubmission
from llama_deploy.types.instance_protocol import AttemptOutcome
from llama_deploy.types.validation import describe_validation_error


async def route(orchestrator: BaseOrchestrator, sessions: Sessions, task: TaskDefinition) -> TaskSubmission:
    """Return the submission for a task in the format of 0.6: choose its service, decode its arguments.

    Raises:
        InvalidRequestError: The input is not a JSON object, or no service is named.
        ConfigError: The orchestrator did not choose exactly one service.
        SessionNotFoundError: The session does not exist.
    """
    arguments = decode_arguments(task.input)
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
    result = TaskResult(
        task_id=outcome.task_id,
        result=outcome.text,
        status=outcome.status,
        value=outcome.value,
        value_type=outcome.value_type,
        error=outcome.error,
        attempts=outcome.attempt,
    )
    state = await _state(orchestrator, sessions, session_id)
    changes = await orchestrator.add_result_to_state(result, state)
    return outcome.model_copy(update={"session_state": {**(outcome.session_state or {}), **changes}})


def decode_arguments(text: str) -> dict[str, Any]:
    """Return run arguments from a JSON object.

    Raises:
        InvalidRequestError: The text is not JSON, or not an object.
    """
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequestError(f"the input is not JSON: {exc}; it begins with {text[:40]!r}") from exc
    if not isinstance(decoded, dict):
        raise InvalidRequestError(
            f"the input must be a JSON object with the run arguments by name, not {type(decoded).__name__}"
        )
    return decoded


async def _state(
    orchestrator: BaseOrchestrator, sessions: Sessions, session_id: str | None
) -> dict[str, Any]:
    if not orchestrator.keeps_state or session_id is None:
        return {}
    return (await sessions.state(session_id)).state
