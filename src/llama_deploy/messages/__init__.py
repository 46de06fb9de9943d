"""Messages: the envelope of everything on a queue."""

from __future__ import annotations

from llama_deploy.messages.base import MAX_DEPTH, WIRE_VERSION, QueueMessage, QueueMessageStats
from llama_deploy.types import ActionTypes

__all__ = ["MAX_DEPTH", "WIRE_VERSION", "ActionTypes", "QueueMessage", "QueueMessageStats"]
