"""Message queues: the contract, the backends, and how to find one by its settings."""

from __future__ import annotations

from llama_deploy.message_queues.base import (
    AbstractMessageQueue,
    Consumer,
    Delivery,
    MessageQueueConfig,
    PublishCallback,
    StartConsumingCallable,
    Subscription,
)
from llama_deploy.message_queues.registry import config_from_settings
from llama_deploy.message_queues.simple import (
    LocalMessageQueue,
    SimpleMessageQueue,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)

__all__ = [
    "AbstractMessageQueue",
    "Consumer",
    "Delivery",
    "LocalMessageQueue",
    "MessageQueueConfig",
    "PublishCallback",
    "SimpleMessageQueue",
    "SimpleMessageQueueConfig",
    "SimpleMessageQueueServer",
    "StartConsumingCallable",
    "Subscription",
    "config_from_settings",
]
