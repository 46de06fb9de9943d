"""The base class of orchestrators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from llama_deploy.messages import QueueMessage
from llama_deploy.types import TaskDefinition, TaskResult


class BaseOrchestrator(ABC):
    """Sends a task from service to service, and keeps what it needs for that in the session's state.

    It runs in the control plane, outside of its transactions, so it may wait for other servers. It must not
    block the event loop. Both methods get a copy of the session's state. What they change in it, and what
    they return, is stored together with the next step of the task. If the state has changed meanwhile,
    nothing is stored, and they are called again with the new state. The same happens if the control plane
    dies before that. An exception fails the task, and so does an answer that takes longer than
    `orchestrator_timeout` of the control plane.

    Example:
        ```python
        class Chain(BaseOrchestrator):
            async def get_next_messages(self, task_def, state):
                draft = state.get(f"draft_{task_def.task_id}")
                if draft is None:
                    service, text = "writer", task_def.input
                elif f"review_{task_def.task_id}" not in state:
                    service, text = "reviewer", json.dumps({"draft": draft})
                else:
                    return [], {}
                data = task_def.model_copy(update={"input": text}).model_dump()
                return [QueueMessage(type=service, action=ActionTypes.NEW_TASK, data=data)], {}

            async def add_result_to_state(self, result, state):
                step = "review" if f"draft_{result.task_id}" in state else "draft"
                return {f"{step}_{result.task_id}": result.result}
        ```
    """

    continues_after_failure: ClassVar[bool] = False
    """Whether `get_next_messages` is called after a service has failed. False: the task fails."""
    max_attempts: int = 4
    """After how many deaths of processes a task fails, unless `TaskSubmission.max_attempts` is set."""

    @abstractmethod
    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        """Return what follows for a task, and changes to the session's state.

        Called when it is the task's turn in its session, and after each result. A message with the action
        `new_task`, or without an action, names a service in `type` and its run arguments in `data["input"]`.
        Several are sent one after the other. Messages with other actions are published to the topics of their
        types. When there is no `new_task` message, the task ends: with the result under the key of
        `get_result_key` in the state if there is one, otherwise with the last result of a service.

        Args:
            task_def: The task as it was submitted. `agent_id` is the service that the client has named.
            state: The session's state.
        """

    @abstractmethod
    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        """Return changes to the session's state after a service has ended its part of a task.

        Args:
            result: What the service has returned. `result.status` says whether it has succeeded.
            state: The session's state.
        """
