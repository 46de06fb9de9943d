"""Services that host no workflow, written as for llama_deploy 0.6."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from llama_deploy import BaseService, CallableMessageConsumer, QueueMessage
from llama_deploy.message_consumers import BaseMessageQueueConsumer
from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.messages import ActionTypes
from llama_deploy.services import ControlPlaneGateway
from llama_deploy.types import ServiceDefinition, TaskResult, TaskStream
from tests.integration.in_process import Stack, stop

Process: TypeAlias = Callable[["Custom", QueueMessage], Awaitable[Any]]


class Custom(BaseService):
    """Processes messages with a function, and has what 0.6 asks of every service."""

    def __init__(
        self,
        queue: AbstractMessageQueue,
        process: Process,
        *,
        name: str = "custom",
        gateway: ControlPlaneGateway | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, gateway=gateway, **options)
        self._queue = queue
        self._process = process
        self.taken: list[QueueMessage] = []

    @property
    def message_queue(self) -> AbstractMessageQueue:
        return self._queue

    @property
    def publisher_id(self) -> str:
        return f"{self.service_name}-publisher"

    @property
    def service_definition(self) -> ServiceDefinition:
        return ServiceDefinition(service_name=self.service_name, description="For tests.")

    def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002, ARG002
        return CallableMessageConsumer(
            id_=self.publisher_id, message_type=self.service_name, handler=self.process_message
        )

    async def process_message(self, message: QueueMessage) -> Any:
        self.taken.append(message)
        return await self._process(self, message)

    async def processing_loop(self) -> None:
        await asyncio.Event().wait()

    async def launch_local(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.processing_loop())

    async def launch_server(self) -> None:
        await self.processing_loop()

    async def publish_result(self, task_id: str, result: str, **fields: Any) -> None:
        """Publish a result as services of 0.6 did."""
        outcome = TaskResult(task_id=task_id, result=result, **{"history": [], "data": {}, **fields})
        await self.publish(
            QueueMessage(type="control_plane", action=ActionTypes.COMPLETED_TASK, data=outcome.model_dump())
        )

    async def publish_event(self, message: QueueMessage, index: int, **data: Any) -> None:
        """Publish a stream event of a message's task as services of 0.6 did."""
        event = TaskStream(
            task_id=message.data["task_id"], session_id=message.data["session_id"], data=data, index=index
        )
        await self.publish(
            QueueMessage(type="control_plane", action=ActionTypes.TASK_STREAM, data=event.model_dump())
        )


def custom(stack: Stack, process: Process, **options: Any) -> Custom:
    """Return a service of a stack's control plane."""
    options = {"gateway": stack.server.gateway(), "drain_timeout": 2.0, **options}
    return Custom(stack.queue, process, **options)


@asynccontextmanager
async def consuming(service: BaseService) -> AsyncIterator[asyncio.Task[None]]:
    """Register a service by hand, as programs of 0.6 did, and let it consume."""
    await service.register_to_control_plane()
    working = asyncio.create_task((await service.register_to_message_queue())())
    looping = await service.launch_local()
    try:
        yield working
    finally:
        # The loop last: what it still has to do may be part of the drain.
        await stop(working)
        await stop(looping)
