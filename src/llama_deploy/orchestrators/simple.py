"""The orchestrator for tasks that name their service."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from llama_deploy.errors import InvalidRequestError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.orchestrators.base import BaseOrchestrator
from llama_deploy.orchestrators.utils import get_result_key
from llama_deploy.types import TaskDefinition, TaskResult


class SimpleOrchestratorConfig(BaseSettings):
    """Settings of the simple orchestrator; environment variables begin with `SIMPLE_ORCHESTRATOR_`."""

    model_config = SettingsConfigDict(
        env_prefix="SIMPLE_ORCHESTRATOR_", extra="ignore", use_attribute_docstrings=True
    )

    max_retries: int = Field(default=3, ge=0)
    """How often a task is retried after it has ended its process; see `TaskSubmission.max_attempts`."""
    final_message_type: str | None = None
    """The type of a message with each result, which is published to the topic of that type. None: no such
    message."""


class SimpleOrchestrator(BaseOrchestrator):
    """Sends each task to the service that it names.

    Args:
        max_retries: See `SimpleOrchestratorConfig`, whose other fields can be passed by their names.
        final_message_type: The same.
        config: All settings. Those that are passed beside it win.
    """

    final_message_type: str | None = None

    def __init__(
        self,
        max_retries: int | SimpleOrchestratorConfig | None = None,
        final_message_type: str | None = None,
        *,
        config: SimpleOrchestratorConfig | None = None,
    ) -> None:
        if isinstance(max_retries, SimpleOrchestratorConfig):
            max_retries, config = None, max_retries
        given = {"max_retries": max_retries, "final_message_type": final_message_type}
        changes = {name: value for name, value in given.items() if value is not None}
        settings = config.model_dump() if config is not None else {}
        self.config = SimpleOrchestratorConfig(**{**settings, **changes})
        self.max_retries = self.config.max_retries
        self.final_message_type = self.config.final_message_type
        self.max_attempts = self.max_retries + 1

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        """Return a message for the service `task_def.agent_id`, and after its result the final message.

        Raises:
            InvalidRequestError: The task does not name a service.
        """
        if not task_def.agent_id:
            raise InvalidRequestError(
                f"task {task_def.task_id} does not name a service; set agent_id to the name of one"
            )
        state.setdefault(task_def.task_id, {})
        result = state.get(get_result_key(task_def.task_id))
        if result is None:
            data = task_def.model_dump()
            return [QueueMessage(type=task_def.agent_id, action=ActionTypes.NEW_TASK, data=data)], state
        if self.final_message_type is None:
            return [], state
        data = TaskResult.model_validate(result).model_dump(mode="json")
        message = QueueMessage(type=self.final_message_type, action=ActionTypes.COMPLETED_TASK, data=data)
        return [message], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        """Keep the result, and count results."""
        state["retries"] = state.get("retries", -1) + 1
        state[get_result_key(result.task_id)] = result
        return state


def is_plain(orchestrator: BaseOrchestrator) -> bool:
    """Whether an orchestrator only sends each task to the service that it names.

    Then it need not be asked, and the session's state need not be read.
    """
    cls = type(orchestrator)
    return (
        isinstance(orchestrator, SimpleOrchestrator)
        and orchestrator.final_message_type is None
        and cls.get_next_messages is SimpleOrchestrator.get_next_messages
        and cls.add_result_to_state is SimpleOrchestrator.add_result_to_state
    )
