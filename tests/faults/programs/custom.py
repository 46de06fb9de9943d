"""One instance of a service without a workflow, which writes down what it does in the ledger."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from tests.faults.programs.service import note

from llama_deploy import (
    BaseService,
    CallableMessageConsumer,
    ControlPlaneConfig,
    QueueMessage,
    SimpleMessageQueueConfig,
)
from llama_deploy.deploy.readiness import connect_queue
from llama_deploy.message_consumers import BaseMessageQueueConsumer
from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.messages import ActionTypes
from llama_deploy.types import ServiceDefinition, TaskResult, TaskStream


class Ledgered(BaseService):
    """Takes `seconds`, and streams `events` numbers meanwhile. Publishes as services of 0.6 did."""

    def __init__(self, queue: AbstractMessageQueue) -> None:
        super().__init__("ledger", control_plane_config=ControlPlaneConfig())
        self._queue = queue

    @property
    def message_queue(self) -> AbstractMessageQueue:
        return self._queue

    @property
    def publisher_id(self) -> str:
        return self.service_name

    @property
    def service_definition(self) -> ServiceDefinition:
        return ServiceDefinition(service_name=self.service_name)

    def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002
        return CallableMessageConsumer(message_type=self.service_name, handler=self.process_message)

    async def process_message(self, message: QueueMessage) -> None:
        task_id, arguments = message.data["task_id"], json.loads(message.data["input"])
        name = str(arguments["name"])
        note("begin", name)
        for n in range(int(arguments.get("events", 0))):
            await self._send(
                ActionTypes.TASK_STREAM, TaskStream(task_id=task_id, data={"n": n}, index=n).model_dump()
            )
        await asyncio.sleep(float(arguments.get("seconds", 0)))
        note("end", name)
        result = TaskResult(task_id=task_id, history=[], result=f"{name} 1", data={})
        await self._send(ActionTypes.COMPLETED_TASK, result.model_dump())

    async def _send(self, action: ActionTypes, data: dict[str, Any]) -> None:
        await self.publish(QueueMessage(type="control_plane", action=action, data=data))

    async def processing_loop(self) -> None:
        await (await self.register_to_message_queue())()

    async def launch_local(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.processing_loop())

    async def launch_server(self) -> None:
        await self.processing_loop()


async def main() -> None:
    async with await connect_queue(ControlPlaneConfig().url, SimpleMessageQueueConfig()) as queue:
        await Ledgered(queue).launch_server()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
