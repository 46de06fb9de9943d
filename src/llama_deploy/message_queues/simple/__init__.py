"""The simple message queue: no broker to install, over HTTP or inside one process."""

from __future__ import annotations

from llama_deploy.message_queues.simple.config import SimpleMessageQueueConfig
from llama_deploy.message_queues.simple.http_queue import SimpleMessageQueue
from llama_deploy.message_queues.simple.local import LocalMessageQueue
from llama_deploy.message_queues.simple.queue_server import SimpleMessageQueueServer
from llama_deploy.renamed import old_names

__all__ = [
    "LocalMessageQueue",
    "SimpleMessageQueue",
    "SimpleMessageQueueConfig",
    "SimpleMessageQueueServer",
]

__getattr__ = old_names(__name__, __path__)
