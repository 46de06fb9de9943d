"""Clients: hand tasks to a control plane, read their events and results.

Everything a client does is written once, without I/O, in the modules of this package (`operation` says how);
`aio` and `sync` carry it out with an event loop and without one.
"""

from __future__ import annotations

from llama_deploy.client.aio.client import Client
from llama_deploy.client.aio.core import Session
from llama_deploy.client.aio.legacy import AsyncLlamaDeployClient
from llama_deploy.client.aio.task import TaskHandle
from llama_deploy.client.deployment_operations import ApiServerStatus
from llama_deploy.client.service_operations import Service
from llama_deploy.client.settings import ClientSettings
from llama_deploy.client.sync.client import SyncClient
from llama_deploy.client.sync.core import SyncSession
from llama_deploy.client.sync.legacy import LlamaDeployClient
from llama_deploy.client.sync.task import SyncTaskHandle

__all__ = [
    "ApiServerStatus",
    "AsyncLlamaDeployClient",
    "Client",
    "ClientSettings",
    "LlamaDeployClient",
    "Service",
    "Session",
    "SyncClient",
    "SyncSession",
    "SyncTaskHandle",
    "TaskHandle",
]
