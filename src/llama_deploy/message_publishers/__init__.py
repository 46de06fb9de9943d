"""Publishers send messages."""

from __future__ import annotations

from llama_deploy.message_publishers.publisher import MessageQueuePublisherMixin
from llama_deploy.message_queues.base import PublishCallback

__all__ = ["MessageQueuePublisherMixin", "PublishCallback"]
