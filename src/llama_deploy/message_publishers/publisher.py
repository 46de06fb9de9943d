"""The mixin of everything that publishes messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from llama_deploy.message_queues.base import AbstractMessageQueue, PublishCallback
from llama_deploy.messages import QueueMessage


class MessageQueuePublisherMixin(ABC):
    """Gives a class `publish`."""

    @property
    @abstractmethod
    def publisher_id(self) -> str:
        """Who publishes: it is written into each message."""

    @property
    @abstractmethod
    def message_queue(self) -> AbstractMessageQueue:
        """The queue to publish to."""

    @property
    def publish_callback(self) -> PublishCallback | None:
        """Called with each message after the queue has it. None: nothing is."""
        return None

    @abstractmethod
    def get_topic(self, msg_type: str) -> str:
        """Return the topic for messages of this type."""

    async def publish(self, message: QueueMessage, **kwargs: Any) -> None:
        """Publish a message, with the publisher's id and the present time written into it.

        Args:
            message: The message.
            **kwargs: `topic` is the topic, by default `get_topic(message.type)`. The rest goes to the queue,
                which hands it to `publish_callback`.

        Raises:
            QueueFullError: The topic holds as many messages as it may.
            UnavailableError: The queue does not answer.
        """
        message.publisher_id = self.publisher_id
        message.stats.publish_time = message.stats.timestamp_str()
        topic = kwargs.pop("topic", None) or self.get_topic(message.type)
        await self.message_queue.publish(message, topic, callback=self.publish_callback, **kwargs)
