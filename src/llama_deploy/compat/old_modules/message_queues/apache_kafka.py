"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.message_queues.kafka import KafkaMessageQueue, KafkaMessageQueueConfig

__all__ = ["KafkaMessageQueue", "KafkaMessageQueueConfig"]
