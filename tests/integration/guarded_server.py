"""A control plane whose callers need a key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from llama_deploy import (
    ControlPlaneConfig,
    ControlPlaneServer,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)

ADMIN: Final = "admin-key-of-thirty-two-characters-or-more"


@asynccontextmanager
async def guarded_server(folder: Path, **settings: Any) -> AsyncIterator[ControlPlaneServer]:
    """Serve with the admin key `ADMIN`, and its state in a folder."""
    config = ControlPlaneConfig(
        port=0,
        state_store_uri=f"sqlite:///{folder}/state.db",
        authentication="keys",
        admin_key=SecretStr(ADMIN),
        **settings,
    )
    async with (
        SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as queue,
        ControlPlaneServer(queue.local_queue(), config=config) as server,
    ):
        yield server
