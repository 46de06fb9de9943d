"""Consumers process the messages of a topic."""

from __future__ import annotations

from llama_deploy.message_consumers.base import BaseMessageQueueConsumer
from llama_deploy.message_consumers.callable import CallableMessageConsumer
from llama_deploy.message_consumers.remote import RemoteMessageConsumer
from llama_deploy.message_queues.base import StartConsumingCallable

__all__ = [
    "BaseMessageQueueConsumer",
    "CallableMessageConsumer",
    "RemoteMessageConsumer",
    "StartConsumingCallable",
]
