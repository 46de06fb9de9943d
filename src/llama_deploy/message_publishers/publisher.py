"""The mixin for classes that publish messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from llama_deploy.message_queues.base import AbstractMessageQueue, PublishCallback
from llama_deploy.messages import QueueMessage


class MessageQueuePublisherMixin(ABC):
    """Adds `publish` to a class."""

    @property
    @abstractmethod
    def publisher_id(self) -> str:
        """Identifies the publisher. Written into each message."""

    @property
    @abstractmethod
    def message_queue(self) -> AbstractMessageQueue:
        """The queue to publish to."""

    @property
    def publish_callback(self) -> PublishCallback | None:
        """Called with each message after the queue has accepted it, or None."""
        return None

    @abstractmethod
    def get_topic(self, msg_type: str) -> str:
        """Return the topic for messages of this type."""

    async def publish(self, message: QueueMessage, **kwargs: Any) -> None:
        """Set the publisher's id and the current time in a message, and publish it.

        Args:
            message: The message.
            **kwargs: `topic` is the topic, by default `get_topic(message.type)`. The others are passed to
                `publish_callback`.

        Raises:
            QueueFullError: The topic holds as many messages as it may.
            UnavailableError: The queue does not answer.
        """
        message.publisher_id = self.publisher_id
        topic = kwargs.pop("topic", None) or self.get_topic(message.type)
        await self.message_queue.publish(message, topic, callback=self.publish_callback, **kwargs)
