"""The orchestrator for tasks that name their service."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from llama_deploy.errors import InvalidRequestError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.orchestrators.base import BaseOrchestrator
from llama_deploy.types import TaskDefinition, TaskResult


class SimpleOrchestratorConfig(BaseSettings):
    """Settings of the simple orchestrator; environment variables begin with `SIMPLE_ORCHESTRATOR_`."""

    model_config = SettingsConfigDict(
        env_prefix="SIMPLE_ORCHESTRATOR_", extra="ignore", use_attribute_docstrings=True
    )

    max_retries: int = Field(default=3, ge=0)
    """How often a task is retried after its instance was lost; see `TaskSubmission.max_attempts`."""
    final_message_type: str | None = None
    """Kept for 0.6 programs; unused."""


class SimpleOrchestrator(BaseOrchestrator):
    """Sends each task to the service that it names, and does not use the session's state."""

    keeps_state: ClassVar[bool] = False

    def __init__(self, config: SimpleOrchestratorConfig | None = None, **settings: Any) -> None:
        """Accept the settings as a configuration or, as in 0.6, as keyword arguments."""
        self.config = config or SimpleOrchestratorConfig(**settings)
        self.max_attempts = self.config.max_retries + 1

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        """Return a message for the service `task_def.agent_id`, and no changes."""
        del state
        if not task_def.agent_id:
            raise InvalidRequestError(
                f"task {task_def.task_id} does not name a service; set agent_id to the name of one"
            )
        message = QueueMessage(
            type=task_def.agent_id, action=ActionTypes.NEW_TASK, data=task_def.model_dump()
        )
        return [message], {}

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        """Return no changes."""
        del result, state
        return {}
