"""What decides which service gets a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from llama_deploy.messages import QueueMessage
from llama_deploy.types import TaskDefinition, TaskResult


class BaseOrchestrator(ABC):
    """Chooses the service for a task, and may keep something of its result in the session's state."""

    keeps_state: ClassVar[bool] = True
    """Whether the session's state is to be read for this orchestrator and what it returns to be written.

    False spares the reading: `state` is then empty and returned changes are ignored.
    """
    max_attempts: int = 4
    """How many instances may die under a task before it fails, unless the task says; see `TaskSubmission`."""

    @abstractmethod
    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        """Return one message whose `type` is the name of the service, and changes to the session's state.

        Raises:
            InvalidRequestError: The task names no service.
        """

    @abstractmethod
    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        """Return changes to the session's state after a task has ended."""
