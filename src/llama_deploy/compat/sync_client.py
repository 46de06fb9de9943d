# Generated from compat/async_client.py by `make sync-client`; do not edit.
"""The client of llama_deploy 0.5, on top of `SyncClient`."""

from __future__ import annotations

import warnings
from typing import Final, Protocol

from pydantic import TypeAdapter

from llama_deploy.client import Service, SyncClient, SyncSession
from llama_deploy.client.paths import service_path, session_path
from llama_deploy.types import ServiceDefinition, SessionDefinition, TaskDefinition

_TASK: Final = TypeAdapter[TaskDefinition | None](TaskDefinition | None).validate_python


class HasUrl(Protocol):
    """Settings of a server, such as `ControlPlaneConfig`."""

    @property
    def url(self) -> str:
        """The server's base URL."""


class SessionClient(SyncSession):
    """A session with the names of 0.5."""

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.id

    def get_current_task(self) -> TaskDefinition | None:
        """Return the session's last task, None if it has none."""
        return self._api.get(session_path(self.id) + "/current_task", _TASK)


class LlamaDeployClient:
    """Deprecated. Use `SyncClient`, which offers the same and more.

    Args:
        control_plane_config: The control plane's settings; only `url` is used.
        timeout: Seconds to wait for a result.
    """

    def __init__(self, control_plane_config: HasUrl, timeout: float = 120.0) -> None:
        warnings.warn(
            "LlamaDeployClient is deprecated; use llama_deploy.SyncClient instead",
            DeprecationWarning,
            stacklevel=2,
        )
        self._client = SyncClient(control_plane_config.url, timeout=timeout)
        self._core = self._client.core

    def create_session(self) -> SessionClient:
        """Create a session."""
        return self._named(self._core.sessions.create())

    def get_session(self, session_id: str) -> SessionClient:
        """Return an existing session.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        return self._named(self._core.sessions.get(session_id))

    def get_or_create_session(self, session_id: str) -> SessionClient:
        """Return the session with this id; create it if it does not exist."""
        return self._named(self._core.sessions.get_or_create(session_id))

    def _named(self, session: SyncSession) -> SessionClient:
        return SessionClient(self._core.api, session.id)

    def list_sessions(self) -> list[SessionDefinition]:
        """Return the sessions, ordered by id."""
        return self._core.sessions.definitions()

    def delete_session(self, session_id: str) -> None:
        """Delete a session and its tasks.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        self._core.sessions.delete(session_id)

    def list_services(self) -> list[Service]:
        """Return the registered services, ordered by name."""
        return self._core.services.list()

    def get_service(self, service_name: str) -> Service:
        """Return a service.

        Raises:
            ServiceNotFoundError: The service is not registered.
        """
        return self._core.api.get(service_path(service_name), Service.model_validate)

    def register_service(self, service_def: ServiceDefinition) -> Service:
        """Register a service, or replace its definition."""
        return self._core.services.register(service_def)

    def deregister_service(self, service_name: str) -> None:
        """Remove a service and all its instances.

        Raises:
            ServiceNotFoundError: The service is not registered.
        """
        self._core.services.deregister(service_name)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._client.close()
