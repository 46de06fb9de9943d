"""TLS between all processes of a system, and all certificates and authorities are replaced under load."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from llama_deploy import Client
from llama_deploy.client.aio.task import TaskHandle
from llama_deploy.errors import LlamaDeployError
from llama_deploy.testing.processes import free_port
from tests.faults.conftest import System
from tests.faults.test_kills import check_all_end_once
from tests.figures import Tell
from tests.servers.certificates import Authority, Certificate, replace_file
from tests.servers.nats import NatsServer
from tests.servers.postgresql import PostgreSQLServer
from tests.servers.tls import TlsFront, nats_arguments

pytestmark = pytest.mark.faults

TASKS = 120
SECONDS = 0.1


class Files:
    """The files that all processes use, and the authorities that sign what is in them."""

    def __init__(self, folder: Path) -> None:
        self.authorities: list[Authority] = []
        for name in ("old", "new"):
            (folder / name).mkdir()
            self.authorities.append(Authority(folder / name))
        self.trusted = folder / "trusted.pem"
        self.server = Certificate(folder / "server.pem", folder / "server.key")
        self.client = Certificate(folder / "client.pem", folder / "client.key")
        self.trust(self.authorities[:1])
        self.issue(self.authorities[0])

    def trust(self, authorities: list[Authority]) -> None:
        replace_file(self.trusted, b"".join(each.file.read_bytes() for each in authorities))

    def issue(self, authority: Authority) -> None:
        """Let an authority sign new certificates for servers and clients."""
        authority.issue("server").copy_to(self.server)
        authority.issue("client").copy_to(self.client)

    def environment(self) -> dict[str, str]:
        """Return the settings of all processes."""
        own = {"TLS_CERT": self.server.certificate, "TLS_KEY": self.server.key, "TLS_CLIENT_CA": self.trusted}
        servers = ("CONTROL_PLANE", "SIMPLE_MESSAGE_QUEUE", "LLAMA_DEPLOY_WF_SERVICE")
        shown = [str(each) for each in self.client.files]
        return {
            **{f"{server}_{name}": str(path) for server in servers for name, path in own.items()},
            "LLAMA_DEPLOY_CA": str(self.trusted),
            "LLAMA_DEPLOY_CLIENT_CERT": shown[0],
            "LLAMA_DEPLOY_CLIENT_KEY": shown[1],
            "NATS_TLS_CA": str(self.trusted),
            "NATS_TLS_CERT": shown[0],
            "NATS_TLS_KEY": shown[1],
            # For the control planes; instances use what they have for the control plane.
            "SIMPLE_MESSAGE_QUEUE_CLIENT_KWARGS": json.dumps({"verify": str(self.trusted), "cert": shown}),
        }


@asynccontextmanager
async def queue_of(kind: str, system: System, files: Files, folder: Path) -> AsyncIterator[NatsServer | None]:
    """Run the message queue; yield the broker that has to be told of new files."""
    if kind == "simple":
        system.start("core.py", "message_queue")
        yield None
        return
    with NatsServer(folder, *nats_arguments(folder, files.server, files.trusted)) as server:
        system.env["LLAMA_DEPLOY_QUEUE"] = server.url
        yield server


@pytest.mark.parametrize("kind", ["simple", "nats"])
async def test_all_certificates_are_replaced_under_load(
    kind: str,
    system: System,
    tmp_path: Path,
    postgresql_server: PostgreSQLServer,
    postgresql_uri: str,
    tell: Tell,
) -> None:
    files = Files(tmp_path)
    old, new = files.authorities
    left = old.issue("left")
    system.env.update(files.environment())
    async with AsyncExitStack() as stack:
        database = TlsFront(postgresql_server.port, files.server, files.trusted, is_postgresql=True)
        await stack.enter_async_context(database)
        broker = await stack.enter_async_context(queue_of(kind, system, files, tmp_path))
        query = f"sslrootcert={files.trusted}&sslcert={files.client.certificate}&sslkey={files.client.key}"
        uri = postgresql_uri.replace(f":{postgresql_server.port}/", f":{database.port}/")
        system.env["CONTROL_PLANE_STATE_STORE_URI"] = f"{uri}?{query}"
        ports = [free_port(), free_port()]
        for port in ports:
            system.start("core.py", "control_plane", CONTROL_PLANE_PORT=str(port))
            system.service(CONTROL_PLANE_PORT=str(port))
        urls = [f"https://127.0.0.1:{port}" for port in ports]

        def client_with(certificate: Certificate, *, timeout: float = 60.0) -> Client:
            return Client(urls, ca=files.trusted, client_certificate=certificate.files, timeout=timeout)

        client = await stack.enter_async_context(client_with(files.client))
        await system.instances(client, 2)
        handles: list[TaskHandle] = []

        async def submit() -> None:
            for n in range(TASKS):
                given = {"seconds": SECONDS, "events": 3}
                handles.append(await client.submit("ledger", name=f"task-{n}", arguments=given))
                # The replacement needs time, and tasks are to be on their way in all of it.
                await system.begun(max(0, len(handles) - 10))

        submitting = asyncio.create_task(submit())
        await system.begun(TASKS // 6)
        files.trust([old, new])
        await system.begun(TASKS // 3)
        files.issue(new)
        if broker is not None:
            broker.reload()
        database.cut()
        await system.begun(TASKS // 2)
        files.trust([new])
        if broker is not None:
            broker.reload()
        database.cut()
        system.service(CONTROL_PLANE_PORT=str(ports[1]))
        await system.instances(client, 3)
        async with client_with(left, timeout=1.0) as unknown:
            with pytest.raises(LlamaDeployError, match="does not trust the client certificate"):
                await unknown.core.services.list()
        await submitting
        await check_all_end_once(handles)
        for port in [*ports, *([] if broker else [int(system.env["SIMPLE_MESSAGE_QUEUE_PORT"])])]:
            assert await issuer_at(port, files) == "new"
    assert set(system.ledger("begin").values()) == {1}, "no process has died, so each task ran once"
    tell(f"TLS over {kind}: {TASKS} tasks over two authorities")


async def issuer_at(port: int, files: Files) -> str:
    """Return the folder of the authority that has signed the certificate that a server shows."""
    for authority in files.authorities:
        context = ssl.create_default_context(cafile=authority.file)
        context.load_cert_chain(*files.client.files)
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        except ssl.SSLCertVerificationError:
            continue
        writer.close()
        return authority.file.parent.name
    raise AssertionError(port)
