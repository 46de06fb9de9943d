"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.message_queues.simple import SimpleMessageQueueConfig, SimpleMessageQueueServer

__all__ = ["SimpleMessageQueueConfig", "SimpleMessageQueueServer"]
