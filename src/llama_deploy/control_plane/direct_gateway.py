"""The gateway to a control plane in the same process, without HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.errors import PayloadTooLargeError, SessionNotFoundError, UnavailableError
from llama_deploy.messages import QueueMessage
from llama_deploy.types import ServiceDefinition
from llama_deploy.types.instance_protocol import (
    BEAT_TIMEOUT,
    ClaimReply,
    ClaimRequest,
    Heartbeat,
    HeartbeatReply,
    JournalReply,
    JournalWrite,
    PartReply,
    PartRequest,
    ReleaseReply,
    ReleaseRequest,
)
from llama_deploy.types.services import Registration
from llama_deploy.web.connection_settings import ConnectionSettings


class DirectGateway:
    """Implements `llama_deploy.services.gateway.ControlPlaneGateway` by calls. `close` does nothing.

    Create it in the event loop of the control plane.

    Args:
        plane: The control plane.
        address: How clients reach it. None: they cannot.
    """

    def __init__(self, plane: ControlPlane, address: ConnectionSettings | None = None) -> None:
        self._plane = plane
        self.address = address
        self._loop = asyncio.get_running_loop()

    async def register(self, definition: ServiceDefinition) -> Registration:
        """Register a service, or an instance of it."""
        await self._plane.services.register(definition)
        config = self._plane.config
        return Registration(topic_namespace=config.topic_namespace, lease_seconds=config.lease_seconds)

    async def deregister(self, service_name: str, instance_id: str | None = None) -> None:
        """Remove one instance, or with `instance_id` None the service."""
        await self._plane.services.deregister(service_name, instance_id=instance_id)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Claim an attempt."""
        return (await self._plane.attempts.claim([request]))[0]

    async def part(self, request: PartRequest) -> PartReply:
        """Fetch a slice of a part that the reply to a claim omitted."""
        return await self._plane.attempts.parts.read(request)

    async def journal(self, write: JournalWrite) -> JournalReply:
        """Store one step of a run's journal."""
        return (await self._plane.attempts.journal([write]))[0]

    async def report(self, message: QueueMessage) -> None:
        """Store a report that is too large for the queue."""
        limit, size = self._plane.config.max_body_bytes, len(message.encode())
        if size > limit:
            raise PayloadTooLargeError(
                f"the report has {size} bytes but the control plane accepts {limit}; send less, or raise"
                " max_body_bytes",
                limit_bytes=limit,
            )
        await self._plane.uploads.take(message)

    async def release(self, request: ReleaseRequest) -> ReleaseReply:
        """Release an attempt."""
        return (await self._plane.attempts.release([request]))[0]

    def beat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        """Process a heartbeat from another thread."""
        if self._loop.is_closed():
            raise UnavailableError("the control plane in this process has stopped")
        future = asyncio.run_coroutine_threadsafe(self._plane.services.heartbeat(heartbeat), self._loop)
        try:
            return future.result(BEAT_TIMEOUT)
        except TimeoutError as exc:
            future.cancel()
            raise UnavailableError(f"the control plane did not answer within {BEAT_TIMEOUT} s") from exc

    async def get_session_state(self, session_id: str) -> dict[str, Any] | None:
        """Return the state of a session, None if the session does not exist."""
        try:
            return (await self._plane.sessions.state(session_id)).state
        except SessionNotFoundError:
            return None

    async def update_session_state(self, session_id: str, state: dict[str, Any]) -> None:
        """Merge `state` into the state of a session."""
        await self._plane.sessions.merge_state(session_id, state)

    async def close(self) -> None:
        """Do nothing."""
