"""What the tests of the queue on Redis share."""

from __future__ import annotations

from typing import Any

from llama_deploy.message_queues.redis import RedisMessageQueueConfig


def settings(url: str, **fields: Any) -> RedisMessageQueueConfig:
    return RedisMessageQueueConfig(url=url, **{"visibility_timeout": 2.0, **fields})
