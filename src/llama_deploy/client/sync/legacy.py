"""The client without `await` of llama_deploy 0.5, in terms of `Client.sync`."""

from __future__ import annotations

import warnings

from llama_deploy.client import service_operations as services
from llama_deploy.client import session_operations as sessions
from llama_deploy.client.service_operations import Service
from llama_deploy.client.settings import DEFAULT_TIMEOUT, HasUrl
from llama_deploy.client.sync.client import SyncClient
from llama_deploy.client.sync.core import SyncSession
from llama_deploy.types import ServiceDefinition, SessionDefinition, TaskDefinition


class SessionClient(SyncSession):
    """A session under the names of 0.5."""

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.id

    def get_current_task(self) -> TaskDefinition | None:
        """Return the session's last task, None if it has none."""
        return self._driver.run(sessions.current_task(self.id))


class LlamaDeployClient:
    """Deprecated: use `Client.sync`, which does the same and more.

    Args:
        control_plane_config: The control plane's settings; only `url` is read.
        timeout: Seconds to wait for a result.
    """

    def __init__(self, control_plane_config: HasUrl, timeout: float = DEFAULT_TIMEOUT) -> None:
        warnings.warn(
            "LlamaDeployClient is deprecated; use llama_deploy.Client and its `sync`",
            DeprecationWarning,
            stacklevel=2,
        )
        self._client = SyncClient(control_plane_url=control_plane_config.url, timeout=timeout)
        self._driver = self._client.core.driver

    def create_session(self) -> SessionClient:
        """Create a session."""
        return self._session(self._client.core.sessions.create().id)

    def get_session(self, session_id: str) -> SessionClient:
        """Return a session that exists.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        return self._session(self._client.core.sessions.get(session_id).id)

    def get_or_create_session(self, session_id: str) -> SessionClient:
        """Return the session of this id, after creating it if there is none."""
        return self._session(self._client.core.sessions.get_or_create(session_id).id)

    def _session(self, session_id: str) -> SessionClient:
        return SessionClient(self._driver, session_id)

    def list_sessions(self) -> list[SessionDefinition]:
        """Return the sessions, ordered by id."""
        return self._driver.run(sessions.list_all())

    def delete_session(self, session_id: str) -> None:
        """Delete a session with its tasks.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        self._client.core.sessions.delete(session_id)

    def list_services(self) -> list[Service]:
        """Return the registered services, ordered by name."""
        return self._client.core.services.list()

    def get_service(self, service_name: str) -> Service:
        """Return one service.

        Raises:
            ServiceNotFoundError: Nobody has registered it.
        """
        return self._driver.run(services.read(service_name))

    def register_service(self, service_def: ServiceDefinition) -> Service:
        """Make a service known, or replace its definition."""
        return self._client.core.services.register(service_def)

    def deregister_service(self, service_name: str) -> None:
        """Remove a service with all its instances.

        Raises:
            ServiceNotFoundError: Nobody has registered it.
        """
        self._client.core.services.deregister(service_name)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._client.close()
