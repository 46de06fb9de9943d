"""The asyncio client of llama_deploy 0.5, in terms of `Client`."""

from __future__ import annotations

import warnings

from llama_deploy.client import service_operations as services
from llama_deploy.client import session_operations as sessions
from llama_deploy.client.aio.client import Client
from llama_deploy.client.aio.core import Session
from llama_deploy.client.service_operations import Service
from llama_deploy.client.settings import DEFAULT_TIMEOUT, HasUrl
from llama_deploy.types import ServiceDefinition, SessionDefinition, TaskDefinition


class AsyncSessionClient(Session):
    """A session under the names of 0.5."""

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.id

    async def get_current_task(self) -> TaskDefinition | None:
        """Return the session's last task, None if it has none."""
        return await self._driver.run(sessions.current_task(self.id))


class AsyncLlamaDeployClient:
    """Deprecated: use `Client`, which does the same and more.

    Args:
        control_plane_config: The control plane's settings; only `url` is read.
        timeout: Seconds to wait for a result.
    """

    def __init__(self, control_plane_config: HasUrl, timeout: float = DEFAULT_TIMEOUT) -> None:
        warnings.warn(
            "AsyncLlamaDeployClient is deprecated; use llama_deploy.Client", DeprecationWarning, stacklevel=2
        )
        self._client = Client(control_plane_url=control_plane_config.url, timeout=timeout)
        self._driver = self._client.core.driver

    async def create_session(self) -> AsyncSessionClient:
        """Create a session."""
        return self._session((await self._client.core.sessions.create()).id)

    async def get_session(self, session_id: str) -> AsyncSessionClient:
        """Return a session that exists.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        return self._session((await self._client.core.sessions.get(session_id)).id)

    async def get_or_create_session(self, session_id: str) -> AsyncSessionClient:
        """Return the session of this id, after creating it if there is none."""
        return self._session((await self._client.core.sessions.get_or_create(session_id)).id)

    def _session(self, session_id: str) -> AsyncSessionClient:
        return AsyncSessionClient(self._driver, session_id)

    async def list_sessions(self) -> list[SessionDefinition]:
        """Return the sessions, ordered by id."""
        return await self._driver.run(sessions.list_all())

    async def delete_session(self, session_id: str) -> None:
        """Delete a session with its tasks.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        await self._client.core.sessions.delete(session_id)

    async def list_services(self) -> list[Service]:
        """Return the registered services, ordered by name."""
        return await self._client.core.services.list()

    async def get_service(self, service_name: str) -> Service:
        """Return one service.

        Raises:
            ServiceNotFoundError: Nobody has registered it.
        """
        return await self._driver.run(services.read(service_name))

    async def register_service(self, service_def: ServiceDefinition) -> Service:
        """Make a service known, or replace its definition."""
        return await self._client.core.services.register(service_def)

    async def deregister_service(self, service_name: str) -> None:
        """Remove a service with all its instances.

        Raises:
            ServiceNotFoundError: Nobody has registered it.
        """
        await self._client.core.services.deregister(service_name)

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._client.close()
