"""The client of llama_deploy 0.5, on top of `Client`."""

from __future__ import annotations

import warnings
from typing import Final, Protocol

from pydantic import TypeAdapter

from llama_deploy.client import Client, Service, Session
from llama_deploy.client.paths import service_path, session_path
from llama_deploy.types import ServiceDefinition, SessionDefinition, TaskDefinition

_TASK: Final = TypeAdapter[TaskDefinition | None](TaskDefinition | None).validate_python


class HasUrl(Protocol):
    """Settings of a server, such as `ControlPlaneConfig`."""

    @property
    def url(self) -> str:
        """The server's base URL."""


class AsyncSessionClient(Session):
    """A session with the names of 0.5."""

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.id

    async def get_current_task(self) -> TaskDefinition | None:
        """Return the session's last task, None if it has none."""
        return await self._api.get(session_path(self.id) + "/current_task", _TASK)


class AsyncLlamaDeployClient:
    """Deprecated. Use `Client`, which offers the same and more.

    Args:
        control_plane_config: The control plane's settings; only `url` is used.
        timeout: Seconds to wait for a result.
    """

    def __init__(self, control_plane_config: HasUrl, timeout: float = 120.0) -> None:
        warnings.warn(
            "AsyncLlamaDeployClient is deprecated; use llama_deploy.Client instead",
            DeprecationWarning,
            stacklevel=2,
        )
        self._client = Client(control_plane_config.url, timeout=timeout)
        self._core = self._client.core

    async def create_session(self) -> AsyncSessionClient:
        """Create a session."""
        return self._named(await self._core.sessions.create())

    async def get_session(self, session_id: str) -> AsyncSessionClient:
        """Return an existing session.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        return self._named(await self._core.sessions.get(session_id))

    async def get_or_create_session(self, session_id: str) -> AsyncSessionClient:
        """Return the session with this id; create it if it does not exist."""
        return self._named(await self._core.sessions.get_or_create(session_id))

    def _named(self, session: Session) -> AsyncSessionClient:
        return AsyncSessionClient(self._core.api, session.id)

    async def list_sessions(self) -> list[SessionDefinition]:
        """Return the sessions, ordered by id."""
        return await self._core.sessions.definitions()

    async def delete_session(self, session_id: str) -> None:
        """Delete a session and its tasks.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        await self._core.sessions.delete(session_id)

    async def list_services(self) -> list[Service]:
        """Return the registered services, ordered by name."""
        return await self._core.services.list()

    async def get_service(self, service_name: str) -> Service:
        """Return a service.

        Raises:
            ServiceNotFoundError: The service is not registered.
        """
        return await self._core.api.get(service_path(service_name), Service.model_validate)

    async def register_service(self, service_def: ServiceDefinition) -> Service:
        """Register a service, or replace its definition."""
        return await self._core.services.register(service_def)

    async def deregister_service(self, service_name: str) -> None:
        """Remove a service and all its instances.

        Raises:
            ServiceNotFoundError: The service is not registered.
        """
        await self._core.services.deregister(service_name)

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._client.close()
