"""What the tests of the queue over Kafka share."""

from __future__ import annotations

from typing import Any

from llama_deploy.message_queues.kafka import KafkaMessageQueueConfig


def settings(url: str, **fields: Any) -> KafkaMessageQueueConfig:
    defaults = {"visibility_timeout": 30.0, "partitions": 4, "session_timeout": 3.0, "poll_seconds": 0.1}
    return KafkaMessageQueueConfig(url=url, **{**defaults, **fields})
