"""The connection of a service to the control plane.

`ControlPlaneGateway` is the interface and `HttpGateway` its implementation over HTTP. The control plane has
another implementation, for use within one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter

from llama_deploy.concurrency.batching import Batcher, split
from llama_deploy.errors import LlamaDeployError, PayloadTooLargeError, SessionNotFoundError
from llama_deploy.messages import QueueMessage
from llama_deploy.types import ServiceDefinition
from llama_deploy.types.instance_protocol import (
    BEAT_TIMEOUT,
    BEATS_PER_LEASE,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
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
    check_protocol,
)
from llama_deploy.types.keys import public_id, tenant_of
from llama_deploy.types.owners import Owner, headers_for
from llama_deploy.types.services import Registration
from llama_deploy.web.answers import as_object, read_answer
from llama_deploy.web.connection_settings import Address, ConnectionSettings
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import JSON_HEADERS, HttpRequest
from llama_deploy.web.sync_http_connection import SyncHttpConnection

T = TypeVar("T")


class ControlPlaneGateway(Protocol):
    """The requests of a service to the control plane.

    All methods raise `UnavailableError` if it does not answer, and `ProtocolVersionError` if its release does
    not match. Call all but `beat` in the service's event loop.
    """

    @property
    def address(self) -> ConnectionSettings | None:
        """How clients reach the control plane. None: they cannot."""

    async def register(self, definition: ServiceDefinition) -> Registration:
        """Register a service, or an instance of it if `instance_id` is set. Registering again updates it."""

    async def deregister(self, service_name: str, instance_id: str | None = None) -> None:
        """Remove one instance, or with `instance_id` None the service with all its instances."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Claim an attempt."""

    async def part(self, request: PartRequest) -> PartReply:
        """Fetch a slice of a part that the reply to a claim omitted.

        Raises:
            FencedOutError: The attempt does not belong to the sender any more.
            TaskNotFoundError: The task was deleted.
        """

    async def journal(self, write: JournalWrite) -> JournalReply:
        """Store one step of a run's journal. It is durable if the reply says `stored`.

        Send the writes of a task one at a time, each after the reply to the one before. Send a write whose
        reply was lost again, unchanged.

        Raises:
            PayloadTooLargeError: The write is larger than the control plane accepts.
            OverloadedError: Too many writes are waiting.
        """

    async def report(self, message: QueueMessage) -> None:
        """Upload a `task_stream` or `completed_task` message that is too large for the queue.

        It is durable when this returns. Sending the same report again is harmless.

        Raises:
            EventsMissingError: Earlier reports of the attempt are still on their way. Try again later.
            PayloadTooLargeError: The report is larger than the control plane accepts.
        """

    async def release(self, request: ReleaseRequest) -> ReleaseReply:
        """Release an attempt that this instance will not finish."""

    def beat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        """Send a heartbeat. Blocks; call it from another thread than that of the event loop."""

    async def get_session_state(self, session_id: str) -> dict[str, Any] | None:
        """Return the state of a session, None if the session does not exist."""

    async def update_session_state(self, session_id: str, state: dict[str, Any]) -> None:
        """Merge `state` into the state of a session.

        Raises:
            SessionNotFoundError: The session does not exist.
        """

    async def close(self) -> None:
        """Close all connections. Idempotent."""


_JOURNAL_REQUEST_BYTES: Final = 1024 * 1024
"""Maximum size of the journal writes in one request. A larger write is sent alone.

A quarter of the default of `ControlPlaneConfig.max_body_bytes`.
"""
_HEADERS: Final = {PROTOCOL_HEADER: str(PROTOCOL_VERSION)}
_CLAIM_REPLIES: Final = TypeAdapter(list[ClaimReply]).validate_python
_JOURNAL_REPLIES: Final = TypeAdapter(list[JournalReply]).validate_python
_RELEASE_REPLIES: Final = TypeAdapter(list[ReleaseReply]).validate_python


class HttpGateway:
    """The gateway over HTTP. `close` it.

    Concurrent claims, releases and journal writes share a request.

    Args:
        control_plane: Its URL, such as `http://127.0.0.1:8000`, the URLs of its replicas, or settings.

    Raises:
        ConfigError: The address or a setting is malformed.
    """

    def __init__(self, control_plane: Address) -> None:
        self._connection = HttpConnection(control_plane)
        self._heartbeats = SyncHttpConnection(control_plane, pool_size=1)
        self._beat_timeout = BEAT_TIMEOUT
        self._claims: Batcher[ClaimRequest, ClaimReply] = Batcher(
            partial(self._send_all, "/attempts/claim", _CLAIM_REPLIES), name="claims"
        )
        self._journal: Batcher[JournalWrite, JournalReply] = Batcher(self._journal_all, name="journal")
        self._releases: Batcher[ReleaseRequest, ReleaseReply] = Batcher(
            partial(self._send_all, "/attempts/release", _RELEASE_REPLIES), name="releases"
        )

    @property
    def address(self) -> ConnectionSettings:
        """See `ControlPlaneGateway`."""
        return self._connection.settings

    async def register(self, definition: ServiceDefinition) -> Registration:
        """See `ControlPlaneGateway`."""
        request = _post("/services/register", definition)
        registration = await self._call(request, Registration.model_validate)
        check_protocol(registration.protocol, peer=f"the control plane {self._connection.base_url}")
        if len(self._connection.settings.urls) > 1:
            # A replica that does not answer must leave time to try the next one before the lease ends.
            self._beat_timeout = min(BEAT_TIMEOUT, registration.lease_seconds / BEATS_PER_LEASE)
        return registration

    async def deregister(self, service_name: str, instance_id: str | None = None) -> None:
        """See `ControlPlaneGateway`."""
        params = {"service_name": service_name}
        if instance_id is not None:
            params["instance_id"] = instance_id
        await self._connection.request(
            HttpRequest("POST", "/services/deregister", params=params, headers=_HEADERS)
        )

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """See `ControlPlaneGateway`."""
        return await self._claims.submit(request)

    async def part(self, request: PartRequest) -> PartReply:
        """See `ControlPlaneGateway`."""
        return await self._call(_post("/attempts/part", request), PartReply.model_validate)

    async def journal(self, write: JournalWrite) -> JournalReply:
        """See `ControlPlaneGateway`."""
        return await self._journal.submit(write)

    async def report(self, message: QueueMessage) -> None:
        """See `ControlPlaneGateway`."""
        await self._connection.request(_post_bytes("/attempts/report", message.encode()))

    async def release(self, request: ReleaseRequest) -> ReleaseReply:
        """See `ControlPlaneGateway`."""
        return await self._releases.submit(request)

    def beat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        """See `ControlPlaneGateway`."""
        request = _post("/instances/heartbeat", heartbeat, timeout=self._beat_timeout)
        answer = self._heartbeats.request(request)
        reply = self._read(request, answer, HeartbeatReply.model_validate)
        check_protocol(reply.protocol, peer=f"the control plane {self._connection.base_url}")
        return reply

    async def get_session_state(self, session_id: str) -> dict[str, Any] | None:
        """See `ControlPlaneGateway`."""
        try:
            return await self._call(
                HttpRequest("GET", _state_path(session_id), headers=_acting(session_id)), as_object
            )
        except SessionNotFoundError:
            return None

    async def update_session_state(self, session_id: str, state: dict[str, Any]) -> None:
        """See `ControlPlaneGateway`."""
        request = _post(_state_path(session_id), state)
        await self._connection.request(replace(request, headers=_acting(session_id)))

    async def close(self) -> None:
        """See `ControlPlaneGateway`."""
        await self._claims.close()
        await self._journal.close()
        await self._releases.close()
        await self._connection.close()
        self._heartbeats.close()

    async def _send_all(
        self, path: str, returns: Callable[[Any], list[T]], requests: Sequence[BaseModel]
    ) -> Sequence[T]:
        return await self._call(_post(path, list(requests)), returns)

    async def _journal_all(self, writes: Sequence[JournalWrite]) -> list[JournalReply | BaseException]:
        """Send writes in order, in requests of limited size."""
        outcomes: list[JournalReply | BaseException] = []
        bodies = [write.model_dump_json().encode() for write in writes]
        for some in split(bodies, size=len, max_size=_JOURNAL_REQUEST_BYTES):
            outcomes += await self._journal_some(some)
        return outcomes

    async def _journal_some(self, bodies: Sequence[bytes]) -> Sequence[JournalReply | BaseException]:
        """Send writes in one request or, if that is too large for the server, each in its own."""
        request = _post_bytes("/attempts/journal", b"[%b]" % b",".join(bodies))
        try:
            return await self._call(request, _JOURNAL_REPLIES)
        except PayloadTooLargeError as exc:
            if len(bodies) == 1:
                return [exc]
            return [outcome for each in bodies for outcome in await self._journal_some([each])]
        except LlamaDeployError as exc:
            # The writes in other requests have outcomes of their own.
            return [exc] * len(bodies)

    async def _call(self, request: HttpRequest, returns: Callable[[Any], T]) -> T:
        return self._read(request, await self._connection.request(request), returns)

    def _read(self, request: HttpRequest, answer: Any, returns: Callable[[Any], T]) -> T:
        return read_answer(answer, returns, source=self._connection.base_url + request.path)


def _post(path: str, json: Any, *, timeout: float | None = None) -> HttpRequest:
    return HttpRequest("POST", path, json=json, headers=_HEADERS, timeout=timeout)


def _post_bytes(path: str, content: bytes) -> HttpRequest:
    return HttpRequest("POST", path, content=content, headers={**JSON_HEADERS, **_HEADERS})


def _state_path(session_id: str) -> str:
    return f"/sessions/{quote(public_id(session_id), safe='')}/state"


def _acting(session_id: str) -> dict[str, str]:
    """Return the headers of a request about a session of any tenant."""
    return {**_HEADERS, **headers_for(Owner(tenant_of(session_id)))}
