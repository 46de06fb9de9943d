"""An instance and a control plane of different major versions refuse each other, and say why."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.errors import ProtocolVersionError
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.services.gateway import HttpGateway
from llama_deploy.types import ServiceDefinition
from llama_deploy.types.instance_protocol import PROTOCOL_HEADER, PROTOCOL_VERSION, Heartbeat, check_protocol
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest

NEWER = PROTOCOL_VERSION + 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/services/register", {"service_name": "echo", "instance_id": "two"}),
        ("/instances/heartbeat", {"instance_id": "two"}),
        ("/attempts/claim", [{"task_id": "t", "attempt": 1, "instance_id": "two"}]),
        ("/attempts/journal", []),
        ("/attempts/release", []),
    ],
)
@pytest.mark.parametrize("version", [str(NEWER), "one", ""])
async def test_a_control_plane_refuses_an_instance_of_another_version(
    http: HttpConnection, path: str, body: Any, version: str
) -> None:
    request = HttpRequest("POST", path, json=body, headers={PROTOCOL_HEADER: version})
    with pytest.raises(
        ProtocolVersionError, match=rf"the instance speaks version {version} .* version {PROTOCOL_VERSION};"
    ) as refused:
        await http.request(request)
    assert (refused.value.version, refused.value.supported) == (version, PROTOCOL_VERSION)
    assert "two" not in str(await http.request(HttpRequest("GET", "/services")))


class NewerServer(ControlPlaneServer):
    """A control plane of the next major version."""

    async def register_service(self, service_def: ServiceDefinition) -> dict[str, Any]:
        return {**await super().register_service(service_def), "protocol": NEWER}


async def test_an_instance_refuses_a_control_plane_of_another_version(
    queue: LocalMessageQueue, config: ControlPlaneConfig
) -> None:
    async with NewerServer(queue, config=config) as server:
        gateway = HttpGateway(server.config.url)
        with pytest.raises(ProtocolVersionError, match=rf"{server.config.url} speaks version {NEWER} "):
            await gateway.register(ServiceDefinition(service_name="echo", instance_id="one"))
        await gateway.close()


async def test_equal_versions_understand_each_other(server: ControlPlaneServer) -> None:
    gateway = HttpGateway(server.config.url)
    registration = await gateway.register(ServiceDefinition(service_name="echo", instance_id="one"))
    assert registration.protocol == PROTOCOL_VERSION
    reply = await asyncio.to_thread(gateway.beat, Heartbeat(instance_id="one"))
    assert (reply.protocol, reply.known) == (PROTOCOL_VERSION, True)
    await gateway.close()


def test_the_version_may_be_a_number_or_its_text() -> None:
    check_protocol(PROTOCOL_VERSION, peer="it")
    check_protocol(str(PROTOCOL_VERSION), peer="it")
