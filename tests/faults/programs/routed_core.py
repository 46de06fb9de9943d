"""A core whose orchestrator sends each task through the service `ledger` twice."""

import asyncio
import json
import os
import sys
from typing import Any

from llama_deploy import ControlPlaneConfig, ControlPlaneServer, SimpleMessageQueueConfig
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.types import TaskDefinition, TaskResult


class Twice(BaseOrchestrator):
    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        done = state.get("done", [])
        if len(done) == 1 and os.environ.get("STUCK") == "yes":
            print("stuck", flush=True)
            await asyncio.Event().wait()
        if len(done) == 2:
            return [], {}
        arguments = json.loads(task_def.input)
        arguments["name"] = f"{arguments['name']}-{len(done)}"
        data = {**task_def.model_dump(), "input": json.dumps(arguments)}
        return [QueueMessage(type="ledger", action=ActionTypes.NEW_TASK, data=data)], {}

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        return {"done": [*state.get("done", []), result.result]}


async def main() -> None:
    async with await SimpleMessageQueueConfig().connect() as queue:
        await ControlPlaneServer(queue, Twice(), config=ControlPlaneConfig()).launch_server()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
