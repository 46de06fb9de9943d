"""The connection of a service to the control plane.

`ControlPlaneGateway` is the interface and `HttpGateway` its implementation over HTTP. The control plane has
another implementation, for use within one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from llama_deploy.batching import Batcher
from llama_deploy.errors import (
    InternalServerError,
    LlamaDeployError,
    PayloadTooLargeError,
    SessionNotFoundError,
)
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
from llama_deploy.types.services import Registration
from llama_deploy.types.validation import describe_validation_error
from llama_deploy.web.connection_settings import Address
from llama_deploy.web.http_connection import JSON_HEADERS, HttpConnection, HttpRequest, SyncHttpConnection

T = TypeVar("T")


class ControlPlaneGateway(Protocol):
    """The requests of a service to the control plane.

    All methods raise `UnavailableError` if it does not answer, and `ProtocolVersionError` if its release does
    not match. Call all but `beat` in the service's event loop.
    """

    async def register(self, definition: ServiceDefinition) -> Registration:
        """Register a service, or an instance of it if `instance_id` is set. Registering again updates it."""
        ...

    async def deregister(self, service_name: str, instance_id: str | None = None) -> None:
        """Remove one instance, or with `instance_id` None the service with all its instances."""
        ...

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Claim an attempt."""
        ...

    async def part(self, request: PartRequest) -> PartReply:
        """Fetch a slice of a part that the reply to a claim omitted.

        Raises:
            FencedOutError: The attempt does not belong to the sender any more.
            TaskNotFoundError: The task was deleted.
        """
        ...

    async def journal(self, write: JournalWrite) -> JournalReply:
        """Store one step of a run's journal. It is durable if the reply says `stored`.

        Send the writes of a task one at a time, each after the reply to the one before. Send a write whose
        reply was lost again, unchanged.

        Raises:
            PayloadTooLargeError: The write is larger than the control plane accepts.
            OverloadedError: Too many writes are waiting.
        """
        ...

    async def report(self, message: QueueMessage) -> None:
        """Upload a `task_stream` or `completed_task` message that is too large for the queue.

        It is durable when this returns. Sending the same report again is harmless.

        Raises:
            EventsMissingError: Earlier reports of the attempt are still on their way. Try again later.
            PayloadTooLargeError: The report is larger than the control plane accepts.
        """
        ...

    async def release(self, request: ReleaseRequest) -> ReleaseReply:
        """Release an attempt that this instance will not finish."""
        ...

    def beat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        """Send a heartbeat. Blocks; call it from another thread than that of the event loop."""
        ...

    async def get_session_state(self, session_id: str) -> dict[str, Any] | None:
        """Return the state of a session, None if the session does not exist."""
        ...

    async def update_session_state(self, session_id: str, state: dict[str, Any]) -> None:
        """Merge `state` into the state of a session.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        ...

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        ...


_JOURNAL_REQUEST_BYTES: Final = 1024 * 1024
"""Maximum size of the journal writes in one request. A larger write is sent alone.

A quarter of the default of `ControlPlaneConfig.max_body_bytes`.
"""
_HEADERS: Final = {PROTOCOL_HEADER: str(PROTOCOL_VERSION)}
_CLAIM_REPLIES: Final = TypeAdapter(list[ClaimReply])
_JOURNAL_REPLIES: Final = TypeAdapter(list[JournalReply])
_RELEASE_REPLIES: Final = TypeAdapter(list[ReleaseReply])
_PART_REPLY: Final = TypeAdapter(PartReply)
_REGISTRATION: Final = TypeAdapter(Registration)
_HEARTBEAT_REPLY: Final = TypeAdapter(HeartbeatReply)
_STATE: Final[TypeAdapter[dict[str, Any]]] = TypeAdapter(dict[str, Any])


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
        self._claims: Batcher[ClaimRequest, ClaimReply] = Batcher(self._claim_all, name="claims")
        self._journal: Batcher[JournalWrite, JournalReply] = Batcher(self._journal_all, name="journal")
        self._releases: Batcher[ReleaseRequest, ReleaseReply] = Batcher(self._release_all, name="releases")

    async def register(self, definition: ServiceDefinition) -> Registration:
        """See `ControlPlaneGateway`."""
        request = _post("/services/register", definition)
        registration = self._read(_REGISTRATION, await self._connection.request(request), request)
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
        sent = _post("/attempts/part", request)
        return self._read(_PART_REPLY, await self._connection.request(sent), sent)

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
        reply = self._read(_HEARTBEAT_REPLY, self._heartbeats.request(request), request)
        check_protocol(reply.protocol, peer=f"the control plane {self._connection.base_url}")
        return reply

    async def get_session_state(self, session_id: str) -> dict[str, Any] | None:
        """See `ControlPlaneGateway`."""
        request = HttpRequest("GET", _state_path(session_id), headers=_HEADERS)
        try:
            return self._read(_STATE, await self._connection.request(request), request)
        except SessionNotFoundError:
            return None

    async def update_session_state(self, session_id: str, state: dict[str, Any]) -> None:
        """See `ControlPlaneGateway`."""
        await self._connection.request(_post(_state_path(session_id), state))

    async def close(self) -> None:
        """See `ControlPlaneGateway`."""
        await self._claims.close()
        await self._journal.close()
        await self._releases.close()
        await self._connection.close()
        self._heartbeats.close()

    async def _claim_all(self, requests: Sequence[ClaimRequest]) -> list[ClaimReply | BaseException]:
        request = _post("/attempts/claim", list(requests))
        replies = self._read(_CLAIM_REPLIES, await self._connection.request(request), request)
        return [*replies]

    async def _journal_all(self, writes: Sequence[JournalWrite]) -> list[JournalReply | BaseException]:
        """Send writes in order, in requests of limited size."""
        outcomes: list[JournalReply | BaseException] = []
        for bodies in _cut([write.model_dump_json().encode() for write in writes]):
            outcomes += await self._journal_some(bodies)
        return outcomes

    async def _journal_some(self, bodies: Sequence[bytes]) -> Sequence[JournalReply | BaseException]:
        """Send writes in one request or, if that is too large for the server, each in its own."""
        body = b"[%b]" % b",".join(bodies)
        request = _post_bytes("/attempts/journal", body)
        try:
            return self._read(_JOURNAL_REPLIES, await self._connection.request(request), request)
        except PayloadTooLargeError as exc:
            if len(bodies) == 1:
                return [exc]
            return [outcome for each in bodies for outcome in await self._journal_some([each])]
        except LlamaDeployError as exc:
            # The writes in other requests have outcomes of their own.
            return [exc] * len(bodies)

    async def _release_all(self, requests: Sequence[ReleaseRequest]) -> list[ReleaseReply | BaseException]:
        request = _post("/attempts/release", list(requests))
        replies = self._read(_RELEASE_REPLIES, await self._connection.request(request), request)
        return [*replies]

    def _read(self, adapter: TypeAdapter[T], answer: Any, request: HttpRequest) -> T:
        try:
            return adapter.validate_python(answer)
        except ValidationError as exc:
            raise InternalServerError(
                f"{self._connection.base_url}{request.path} did not answer like a control plane; check the "
                f"URL: {describe_validation_error(exc)}"
            ) from exc


def _post(path: str, json: Any, *, timeout: float | None = None) -> HttpRequest:
    return HttpRequest("POST", path, json=json, headers=_HEADERS, timeout=timeout)


def _post_bytes(path: str, content: bytes) -> HttpRequest:
    return HttpRequest("POST", path, content=content, headers={**JSON_HEADERS, **_HEADERS})


def _cut(bodies: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the bodies in order, in groups of the maximum size of a request."""
    group: list[bytes] = []
    size = 0
    for body in bodies:
        if group and size + len(body) > _JOURNAL_REQUEST_BYTES:
            yield group
            group, size = [], 0
        group.append(body)
        size += len(body)
    if group:
        yield group


def _state_path(session_id: str) -> str:
    return f"/sessions/{quote(session_id, safe='')}/state"
