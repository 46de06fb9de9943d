"""Message queues: the contract, the backends, and how to find one by its settings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from llama_deploy.message_queues.base import (
    AbstractMessageQueue,
    Consumer,
    Delivery,
    MessageQueueConfig,
    PublishCallback,
    StartConsumingCallable,
    Subscription,
)
from llama_deploy.message_queues.queue_registry import config_from_settings, config_from_url
from llama_deploy.message_queues.simple import (
    LocalMessageQueue,
    SimpleMessageQueue,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)

if TYPE_CHECKING:
    from llama_deploy.message_queues.aws import AWSMessageQueueConfig
    from llama_deploy.message_queues.kafka import KafkaMessageQueueConfig
    from llama_deploy.message_queues.nats import NatsMessageQueueConfig
    from llama_deploy.message_queues.rabbitmq import RabbitMQMessageQueueConfig
    from llama_deploy.message_queues.redis import RedisMessageQueueConfig

__all__ = [
    "AWSMessageQueueConfig",
    "AbstractMessageQueue",
    "Consumer",
    "Delivery",
    "KafkaMessageQueueConfig",
    "LocalMessageQueue",
    "MessageQueueConfig",
    "NatsMessageQueueConfig",
    "PublishCallback",
    "RabbitMQMessageQueueConfig",
    "RedisMessageQueueConfig",
    "SimpleMessageQueue",
    "SimpleMessageQueueConfig",
    "SimpleMessageQueueServer",
    "StartConsumingCallable",
    "Subscription",
    "config_from_settings",
    "config_from_url",
]

_BACKENDS: Final = {
    "AWSMessageQueueConfig": "aws",
    "KafkaMessageQueueConfig": "kafka",
    "NatsMessageQueueConfig": "nats",
    "RabbitMQMessageQueueConfig": "rabbitmq",
    "RedisMessageQueueConfig": "redis",
}
"""Names whose backend needs a package of its own, imported when it is first asked for."""


def __getattr__(name: str) -> Any:
    """Import the settings of a backend when they are first asked for (PEP 562)."""
    backend = _BACKENDS.get(name)
    if backend is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{backend}"), name)
