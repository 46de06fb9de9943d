"""The base class of orchestrators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from llama_deploy.messages import QueueMessage
from llama_deploy.types import TaskDefinition, TaskResult


class BaseOrchestrator(ABC):
    """Chooses the service for a task, and may store parts of its result in the session's state."""

    keeps_state: ClassVar[bool] = True
    """Whether the orchestrator reads and changes the session's state.

    With False, which is faster, `state` is empty and returned changes are ignored.
    """
    max_attempts: int = 4
    """After how many lost instances a task fails, unless `TaskSubmission.max_attempts` is set."""

    @abstractmethod
    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        """Return one message whose `type` is the name of the service, and changes to the session's state.

        Raises:
            InvalidRequestError: The task does not name a service.
        """

    @abstractmethod
    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        """Return the changes to the session's state after a task has ended."""
