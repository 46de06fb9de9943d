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
from llama_deploy.renamed import old_names

if TYPE_CHECKING:
    from llama_deploy.message_queues.aws import AWSMessageQueue, AWSMessageQueueConfig
    from llama_deploy.message_queues.kafka import KafkaMessageQueue, KafkaMessageQueueConfig
    from llama_deploy.message_queues.nats import NatsMessageQueue, NatsMessageQueueConfig
    from llama_deploy.message_queues.rabbitmq import RabbitMQMessageQueue, RabbitMQMessageQueueConfig
    from llama_deploy.message_queues.redis import RedisMessageQueue, RedisMessageQueueConfig

__all__ = [
    "AWSMessageQueue",
    "AWSMessageQueueConfig",
    "AbstractMessageQueue",
    "Consumer",
    "Delivery",
    "KafkaMessageQueue",
    "KafkaMessageQueueConfig",
    "LocalMessageQueue",
    "MessageQueueConfig",
    "NatsMessageQueue",
    "NatsMessageQueueConfig",
    "PublishCallback",
    "RabbitMQMessageQueue",
    "RabbitMQMessageQueueConfig",
    "RedisMessageQueue",
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
    "AWSMessageQueue": "aws",
    "AWSMessageQueueConfig": "aws",
    "KafkaMessageQueue": "kafka",
    "KafkaMessageQueueConfig": "kafka",
    "NatsMessageQueue": "nats",
    "NatsMessageQueueConfig": "nats",
    "RabbitMQMessageQueue": "rabbitmq",
    "RabbitMQMessageQueueConfig": "rabbitmq",
    "RedisMessageQueue": "redis",
    "RedisMessageQueueConfig": "redis",
}
"""Names whose backend needs a package of its own, imported when it is first asked for."""

_old = old_names(__name__, __path__)


def __getattr__(name: str) -> Any:
    """Import the settings of a backend when they are first asked for (PEP 562)."""
    backend = _BACKENDS.get(name)
    if backend is None:
        return _old(name)
    return getattr(import_module(f"{__name__}.{backend}"), name)
