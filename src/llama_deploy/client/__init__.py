"""Clients: submit tasks to a control plane, read their events and results.

`aio` holds the asyncio client. `sync` holds the same without `await`; it is generated from `aio` by
`make sync-client`. The other modules do no I/O and serve both.
"""

from __future__ import annotations

from llama_deploy.client.aio.client import Client
from llama_deploy.client.aio.core import Session
from llama_deploy.client.aio.inbox import Inbox
from llama_deploy.client.aio.task import TaskHandle
from llama_deploy.client.definitions import ApiServerStatus, Service
from llama_deploy.client.settings import ClientSettings
from llama_deploy.client.sync.client import SyncClient
from llama_deploy.client.sync.core import SyncSession
from llama_deploy.client.sync.inbox import SyncInbox
from llama_deploy.client.sync.task import SyncTaskHandle
from llama_deploy.renamed import old_names

__all__ = [
    "ApiServerStatus",
    "Client",
    "ClientSettings",
    "Inbox",
    "Service",
    "Session",
    "SyncClient",
    "SyncInbox",
    "SyncSession",
    "SyncTaskHandle",
    "TaskHandle",
]

__getattr__ = old_names(__name__, __path__)
