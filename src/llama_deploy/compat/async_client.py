"""The client of llama_deploy 0.5, on top of `Client`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Final, Protocol

from pydantic import TypeAdapter

from llama_deploy.client import Client, Service, Session
from llama_deploy.client.aio.server_api import ServerApi
from llama_deploy.client.paths import service_path, session_path
from llama_deploy.errors import SessionNotFoundError
from llama_deploy.types import ServiceDefinition, SessionDefinition, TaskDefinition

DEFAULT_TIMEOUT: Final = 120.0
"""Seconds."""
DEFAULT_POLL_INTERVAL: Final = 0.5
"""Kept for old programs."""

_TASK: Final = TypeAdapter[TaskDefinition | None](TaskDefinition | None).validate_python


class HasUrl(Protocol):
    """Settings of a server, such as `ControlPlaneConfig`."""

    @property
    def url(self) -> str:
        """The server's base URL."""


def _urls(control_plane: HasUrl | str | Sequence[str]) -> str | Sequence[str]:
    return control_plane if isinstance(control_plane, str | Sequence) else control_plane.url


class AsyncSessionClient(Session):
    """A session with the names of 0.5.

    Args:
        control_plane_config: The control plane's settings, of which only `url` is used; its URL, or the URLs
            of its replicas; or the connection of a client.
        session_id: The session.
        timeout: Seconds to wait for a result.
        poll_interval: Kept for old programs. Nothing polls.
    """

    def __init__(
        self,
        control_plane_config: HasUrl | ServerApi | str | Sequence[str],
        session_id: str,
        timeout: float = DEFAULT_TIMEOUT,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
    ) -> None:
        api = control_plane_config
        super().__init__(
            api if isinstance(api, ServerApi) else Client(_urls(api), timeout=timeout).core.api, session_id
        )
        self.timeout = timeout
        self.poll_interval = poll_interval

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.id

    async def get_current_task(self) -> TaskDefinition | None:
        """Return the session's last task, None if it has none."""
        return await self._api.get(session_path(self.id) + "/current_task", _TASK)


class UnknownSessionError(SessionNotFoundError, ValueError):
    """The session does not exist. A `ValueError`, which old programs expect."""


class AsyncLlamaDeployClient:
    """Deprecated. Use `Client`, which offers the same and more.

    Args:
        control_plane_config: The control plane's settings, of which only `url` is used; or its URL, or the
            URLs of its replicas. Everything else comes from the environment, as for `Client`.
        timeout: Seconds to wait for a result.
    """

    def __init__(
        self, control_plane_config: HasUrl | str | Sequence[str], timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        warnings.warn(
            "AsyncLlamaDeployClient is deprecated; use llama_deploy.Client instead",
            DeprecationWarning,
            stacklevel=2,
        )
        self.control_plane_config = control_plane_config
        self.timeout = timeout
        self._client = Client(_urls(control_plane_config), timeout=timeout)
        self.control_plane_url = self._client.control_plane_url
        self._core = self._client.core

    async def create_session(self, poll_interval: float = DEFAULT_POLL_INTERVAL) -> AsyncSessionClient:
        """Create a session."""
        return self._named(await self._core.sessions.create(), poll_interval)

    async def get_session(
        self, session_id: str, poll_interval: float = DEFAULT_POLL_INTERVAL
    ) -> AsyncSessionClient:
        """Return an existing session.

        Raises:
            UnknownSessionError: The session does not exist.
        """
        try:
            session = await self._core.sessions.get(session_id)
        except SessionNotFoundError as exc:
            raise UnknownSessionError(f"Session with id {session_id} not found") from exc
        return self._named(session, poll_interval)

    async def get_or_create_session(
        self, session_id: str, poll_interval: float = DEFAULT_POLL_INTERVAL
    ) -> AsyncSessionClient:
        """Return the session with this id; create it if it does not exist."""
        return self._named(await self._core.sessions.get_or_create(session_id), poll_interval)

    def _named(self, session: Session, poll_interval: float) -> AsyncSessionClient:
        return AsyncSessionClient(self._core.api, session.id, self.timeout, poll_interval)

    async def get_session_definition(self, session_id: str) -> SessionDefinition:
        """Return a session with its tasks and its state.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        return await self._core.api.get(session_path(session_id), SessionDefinition.model_validate)

    async def list_sessions(self) -> list[SessionDefinition]:
        """Return the sessions, ordered by id."""
        return await self._core.sessions.definitions()

    async def delete_session(self, session_id: str) -> None:
        """Delete a session and its tasks, even if they have not ended. Nothing if it does not exist."""
        await self._core.sessions.delete(session_id, cancel=True)

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
        """Remove a service and all its instances. Does nothing if it is not registered."""
        await self._core.services.deregister(service_name)

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._client.close()
