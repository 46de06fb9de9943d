"""The base class of consumers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.concurrency.cancellation import ends_quietly
from llama_deploy.errors import ConfigError
from llama_deploy.message_queues.base import StartConsumingCallable
from llama_deploy.messages import QueueMessage
from llama_deploy.types import generate_id


async def _not_registered() -> None:
    raise ConfigError(
        "the consumer is not registered; set consuming_callable to the result of register_consumer"
    )


class BaseMessageQueueConsumer(BaseModel, ABC):
    """Processes messages of one type. A queue's `register_consumer` feeds it."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    id_: str = Field(default_factory=generate_id)
    """Identifies the consumer at its queue."""
    message_type: str = "default"
    """The `type` of the messages that it processes. It rejects others."""
    channel: Any = None
    """Kept for the 0.6 API, where it held objects of some brokers."""
    consuming_callable: StartConsumingCallable = Field(default=_not_registered, repr=False)
    """What `start_consuming` runs: the result of the queue's `register_consumer`."""

    @abstractmethod
    async def _process_message(self, message: QueueMessage) -> Any:
        """Process a message. Returning acknowledges it; raising returns it to the queue."""

    async def process_message(self, message: QueueMessage) -> Any:
        """Process a message, and record in its `stats` when that began and ended.

        Returns:
            The result of the consumer. Queues ignore it.

        Raises:
            ValueError: The message has another type than the consumer.
        """
        if message.type != self.message_type:
            raise ValueError(
                f"consumer {self.id_} processes messages of type {self.message_type!r}, "
                f"message {message.id_} is of type {message.type!r}"
            )
        message.stats.process_start_time = message.stats.timestamp_str()
        result = await self._process_message(message)
        message.stats.process_end_time = message.stats.timestamp_str()
        return result

    @ends_quietly
    async def start_consuming(self, consuming_callable: StartConsumingCallable | None = None) -> None:
        """Consume until cancelled or deregistered.

        Args:
            consuming_callable: Overrides the field of this name.

        Raises:
            ConfigError: The consumer is not registered with a queue.
        """
        await (consuming_callable or self.consuming_callable)()
