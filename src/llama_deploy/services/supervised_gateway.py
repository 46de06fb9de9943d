"""The gateway of an instance in a process that has a supervisor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from llama_deploy.errors import LlamaDeployError
from llama_deploy.services.gateway import HttpGateway
from llama_deploy.supervisor.link import SupervisorLink
from llama_deploy.types import ServiceDefinition
from llama_deploy.types.instance_protocol import (
    BEATS_PER_LEASE,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    Heartbeat,
    HeartbeatReply,
)
from llama_deploy.types.services import Registration
from llama_deploy.web.connection_settings import ConnectionSettings


class SupervisedGateway(HttpGateway):
    """Also passes the heartbeats on to the supervisor, which repeats them while this process cannot.

    Args:
        control_plane: How to reach it.
        link: The link to the supervisor.
        queue_problem: Returns why the message queue is not reached, None if it is. Called in a thread.
    """

    def __init__(
        self,
        control_plane: ConnectionSettings,
        link: SupervisorLink,
        *,
        queue_problem: Callable[[], str | None] = lambda: None,
    ) -> None:
        super().__init__(control_plane)
        self._queue_problem = queue_problem
        self._failure: str | None = None
        """Why the control plane has not answered the last heartbeat. None: it has."""
        self._link = link
        self._interval = 0.0
        self._service_name = ""

    async def register(self, definition: ServiceDefinition) -> Registration:
        """See `ControlPlaneGateway`."""
        self._service_name = definition.service_name
        registration = await super().register(definition)
        self._interval = registration.lease_seconds / BEATS_PER_LEASE
        return registration

    async def deregister(self, service_name: str, instance_id: str | None = None) -> None:
        """See `ControlPlaneGateway`."""
        if instance_id is not None:
            self._link.forget(instance_id)
        await super().deregister(service_name, instance_id)

    def beat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        """See `ControlPlaneGateway`."""
        encoded = heartbeat.model_dump_json().encode()
        self._pass_on(heartbeat.instance_id, encoded)
        failure: str | None = None
        try:
            reply = super().beat(heartbeat)
        except LlamaDeployError as exc:
            failure = f"the control plane does not answer its heartbeats: {exc}"
            raise
        finally:
            has_changed = (failure is None) != (self._failure is None)
            self._failure = failure
            if has_changed:
                self._pass_on(heartbeat.instance_id, encoded)
        if not reply.suspects:
            return reply
        # The supervisor starts a process for them, so this one need not step back.
        self._link.ask_alone(self._service_name)
        return reply.model_copy(update={"suspects": 0})

    def _pass_on(self, instance_id: str, heartbeat: bytes) -> None:
        problems = [each for each in (self._failure, self._queue_problem()) if each is not None]
        self._link.beat(instance_id, heartbeat, interval=self._interval, problems=problems)


def connection_facts(control_plane: ConnectionSettings) -> dict[str, Any]:
    """Return how to reach the control plane as JSON, for the supervisor."""
    names = [field.name for field in fields(control_plane) if field.name != "tls"]
    facts = {name: getattr(control_plane, name) for name in names}
    facts["headers"] = dict(control_plane.headers_for(control_plane.urls[0]))
    if control_plane.ca is not None:
        facts["ca"] = str(control_plane.ca)
    facts["server_certificates"] = [str(each) for each in control_plane.server_certificates]
    if control_plane.client_certificate is not None:
        facts["client_certificate"] = [str(each) for each in control_plane.client_certificate]
    return {"settings": facts, "protocol": {PROTOCOL_HEADER: str(PROTOCOL_VERSION)}}
