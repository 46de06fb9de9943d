"""A control plane whose callers need a key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic import SecretStr

from llama_deploy import (
    ControlPlaneConfig,
    ControlPlaneServer,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)
from llama_deploy.control_plane.readiness import HealthCheck

ADMIN: Final = "admin-key-of-thirty-two-characters-or-more"


@asynccontextmanager
async def guarded_server(
    folder: Path, *, checks: Mapping[str, HealthCheck] = MappingProxyType({}), **settings: Any
) -> AsyncIterator[ControlPlaneServer]:
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
        ControlPlaneServer(queue.local_queue(), config=config, checks=checks) as server,
    ):
        yield server
