"""TLS of servers and clients: certificates that are renewed while they run, and that both sides must show."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import Client, ConfigError, ControlPlaneConfig, SimpleMessageQueueConfig
from llama_deploy.deploy import LocalStack
from llama_deploy.deploy.workflow import run_workflow
from llama_deploy.errors import ClientCertificateError, LlamaDeployError, UnavailableError
from llama_deploy.health import PASSED, READY_PATH
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.supervisor.health_server import HealthServer
from llama_deploy.web.connection_settings import ConnectionSettings
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from llama_deploy.web.http_server import HttpServer
from llama_deploy.web.server_tls import ServerTls, TlsFiles
from llama_deploy.web.sync_http_connection import SyncHttpConnection
from tests.servers.certificates import Authority, Certificate, replace_file

# asyncio may leave the socket of a connection to Python's garbage whose handshake was refused or cut off.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Ask: TypeAlias = Callable[[], Awaitable[Any]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def other_authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "other"
    folder.mkdir()
    return Authority(folder)


@pytest.fixture
def server_certificate(authority: Authority) -> Certificate:
    return authority.issue("server")


async def scheme_app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the scheme of the request."""
    if scope["type"] == "lifespan":
        while (kind := (await receive())["type"]) != "lifespan.shutdown":
            await send({"type": f"{kind}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'"%s"' % scope["scheme"].encode()})


@asynccontextmanager
async def serving(certificate: Certificate, client_ca: Path | None = None) -> AsyncIterator[str]:
    files = TlsFiles(*certificate.files, client_ca)
    async with await HttpServer.start(scheme_app, host="127.0.0.1", port=0, tls=files) as server:
        yield f"https://127.0.0.1:{server.port}"


@asynccontextmanager
async def asking(settings: ConnectionSettings, kind: str) -> AsyncIterator[Ask]:
    """Yield a function that sends one request over a pool of connections."""
    request = HttpRequest("GET", "/")
    if kind == "asyncio":
        connection = HttpConnection(settings)
        yield lambda: connection.request(request)
        await connection.close()
    else:
        blocking = SyncHttpConnection(settings)
        yield lambda: asyncio.to_thread(blocking.request, request)
        blocking.close()


KINDS = pytest.mark.parametrize("kind", ["asyncio", "threads"])


async def subject_of_server(url: str, authority: Authority) -> str:
    """Return the name in the certificate that a server shows on a new connection."""
    context = ssl.create_default_context(cafile=authority.file)
    port = int(url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    subject = writer.get_extra_info("peercert")["subject"]
    writer.close()
    await writer.wait_closed()
    return str(subject[0][0][1])


async def test_a_changed_certificate_is_used_for_new_connections(
    authority: Authority, server_certificate: Certificate
) -> None:
    async with (
        serving(server_certificate) as url,
        asking(ConnectionSettings(urls=[url], ca=authority.file), "asyncio") as ask,
    ):
        assert await ask() == "https"
        assert await subject_of_server(url, authority) == "server"
        authority.issue("renewed").copy_to(server_certificate)
        assert await subject_of_server(url, authority) == "renewed"
        assert await ask() == "https", "an open connection goes on"


async def test_files_that_do_not_belong_together_leave_the_certificate_before(
    authority: Authority, server_certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    renewed = authority.issue("renewed")
    async with serving(server_certificate) as url:
        replace_file(server_certificate.certificate, renewed.certificate.read_bytes())
        for _ in range(3):
            assert await subject_of_server(url, authority) == "server"
        (record,) = (each for each in caplog.records if each.levelno >= logging.WARNING)
        assert f"the key '{server_certificate.key}' (tls_key) does not belong to" in record.getMessage()
        server_certificate.key.unlink()
        assert await subject_of_server(url, authority) == "server"
        replace_file(server_certificate.key, renewed.key.read_bytes())
        assert await subject_of_server(url, authority) == "renewed"


def _without_certificate(files: Certificate, _: Authority) -> None:
    files.certificate.unlink()


def _of_another(files: Certificate, authority: Authority) -> None:
    replace_file(files.key, authority.issue("another").key.read_bytes())


def _exchanged(files: Certificate, _: Authority) -> None:
    replace_file(files.certificate, files.key.read_bytes())


def _encrypted(files: Certificate, authority: Authority) -> None:
    authority.issue("secret", password=b"secret").copy_to(files)


def _cut(files: Certificate, _: Authority) -> None:
    replace_file(files.key, files.key.read_bytes()[:-60] + b"\n-----END PRIVATE KEY-----\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_certificate, r"cannot be read from '.*server.pem' \(tls_cert\): No such file or directory"),
        (_of_another, r"the key '.*server.key' \(tls_key\) does not belong to"),
        (_exchanged, r"'.*server.pem' \(tls_cert\) has no `-----BEGIN CERTIFICATE-----`"),
        (_encrypted, r"the key in '.*server.key' \(tls_key\) is encrypted"),
        (_cut, r"'.*server.pem' \(tls_cert\) with the key '.*server.key' \(tls_key\) cannot be used"),
    ],
)
async def test_files_are_checked_at_the_start(
    authority: Authority,
    server_certificate: Certificate,
    damage: Callable[[Certificate, Authority], None],
    message: str,
) -> None:
    damage(server_certificate, authority)
    with pytest.raises(ConfigError, match=message):
        async with serving(server_certificate):
            pass


def test_an_expired_certificate_is_told(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    TlsFiles(*authority.issue("fresh").files).load()
    assert not caplog.records
    TlsFiles(*authority.issue("expired", expired=True).files).load()
    assert "expired.pem: certificate has expired" in caplog.text


@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        ({"tls_cert": "a.pem"}, "tls_key"),
        ({"tls_key": "a"}, "tls_cert"),
        ({"tls_client_ca": "a"}, "tls_cert"),
    ],
)
def test_certificate_and_key_need_each_other(given: dict[str, Any], lacking: str) -> None:
    for config in (
        ControlPlaneConfig(**given),
        SimpleMessageQueueConfig(**given),
        WorkflowServiceConfig(host="127.0.0.1", port=0, **given),
    ):
        with pytest.raises(ConfigError, match=f"needs {lacking}.* too"):
            _ = config.tls


@KINDS
async def test_clients_must_show_a_certificate_that_the_server_trusts(
    authority: Authority, other_authority: Authority, server_certificate: Certificate, kind: str
) -> None:
    own, foreign = authority.issue("client"), other_authority.issue("client")
    trusted = tmp_file(authority, "trusted.pem", authority.file.read_bytes())
    async with serving(server_certificate, trusted) as url:

        async def request(certificate: Certificate | None) -> Any:
            shown = None if certificate is None else certificate.files
            settings = ConnectionSettings(urls=[url], ca=authority.file, client_certificate=shown)
            async with asking(settings, kind) as ask:
                return await ask()

        assert await request(own) == "https"
        with pytest.raises(ClientCertificateError, match="set LLAMA_DEPLOY_CLIENT_CERT"):
            await request(None)
        with pytest.raises(UnavailableError, match=r"does not trust the client certificate '.*client.pem'"):
            await request(foreign)
        replace_file(trusted, other_authority.file.read_bytes())
        assert await request(foreign) == "https"
        with pytest.raises(UnavailableError):
            await request(own)


def tmp_file(authority: Authority, name: str, content: bytes) -> Path:
    path = authority.file.with_name(name)
    path.write_bytes(content)
    return path


@KINDS
async def test_a_client_uses_renewed_files(
    authority: Authority,
    other_authority: Authority,
    server_certificate: Certificate,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    shown, other = authority.issue("client"), other_authority.issue("client")
    both = authority.file.read_bytes() + other_authority.file.read_bytes()
    client_ca = tmp_file(authority, "client-ca.pem", both)
    ca = tmp_file(authority, "known.pem", authority.file.read_bytes())
    async with serving(server_certificate, client_ca) as url:
        settings = ConnectionSettings(urls=[url], ca=ca, client_certificate=shown.files)
        async with asking(settings, kind) as ask:
            assert await ask() == "https"
            replace_file(shown.certificate, other.certificate.read_bytes())
            assert await ask() == "https", "the key is not there yet"
            assert "the changed TLS files are not used, and those before stay" in caplog.text
            replace_file(shown.key, other.key.read_bytes())
            replace_file(client_ca, other_authority.file.read_bytes())
            replace_file(ca, both)
            other_authority.issue("server").copy_to(server_certificate)
            assert await ask() == "https"


@KINDS
async def test_only_the_certificate_itself_may_be_trusted(
    authority: Authority, server_certificate: Certificate, kind: str
) -> None:
    """As the children of `serve` do."""
    async with serving(server_certificate) as url:
        other = ConnectionSettings(urls=[url], server_certificates=[authority.issue("other").certificate])
        async with asking(other, kind) as ask:
            with pytest.raises(UnavailableError, match="not trusted"):
                await ask()
        settings = ConnectionSettings(urls=[url], server_certificates=[server_certificate.certificate])
        renewed = authority.issue("renewed")
        async with asking(settings, kind) as ask:
            assert await ask() == "https"
            replace_file(server_certificate.certificate, renewed.certificate.read_bytes())
            assert await ask() == "https", "the server has no key for the new one"
            replace_file(server_certificate.key, renewed.key.read_bytes())
            assert await ask() == "https"


@KINDS
@pytest.mark.parametrize(
    ("ca", "message"),
    [
        (None, r"the certificate of the server is not trusted: .*; set ca \(LLAMA_DEPLOY_CA\)"),
        ("expired", r"certificate has expired; renew the certificate of the server"),
    ],
)
async def test_errors_say_what_to_do(authority: Authority, kind: str, ca: str | None, message: str) -> None:
    certificate = authority.issue("server", expired=ca is not None)
    async with serving(certificate) as url:
        settings = ConnectionSettings(urls=[url], ca=None if ca is None else authority.file)
        async with asking(settings, kind) as ask:
            with pytest.raises(UnavailableError, match=message):
                await ask()


@KINDS
async def test_a_server_without_tls_is_told(kind: str) -> None:
    async with await HttpServer.start(scheme_app, host="127.0.0.1", port=0) as server:
        settings = ConnectionSettings(urls=[f"https://127.0.0.1:{server.port}"])
        async with asking(settings, kind) as ask:
            with pytest.raises(UnavailableError, match="does not speak TLS at this port"):
                await ask()


class TestProbes:
    @pytest.fixture
    def port(self, authority: Authority, server_certificate: Certificate) -> Iterator[int]:
        tls = ServerTls(TlsFiles(*server_certificate.files, authority.file))
        server = HealthServer(
            live=dict, ready=lambda: {"here": PASSED}, metrics=lambda: "up 1\n" * 50_000, tls=tls
        )
        yield server.start("127.0.0.1", 0)
        server.close()

    def test_they_need_a_certificate_too(self, authority: Authority, port: int) -> None:
        context = ssl.create_default_context(cafile=authority.file)
        ready = f"https://127.0.0.1:{port}{READY_PATH}"
        with pytest.raises(OSError, match=r"certificate required|reset|ended|EOF"):
            urllib.request.urlopen(ready, timeout=30, context=context)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
            plain.sendall(b"GET /health/ready HTTP/1.1\r\n\r\n")
            with suppress(ConnectionResetError):
                assert b"HTTP" not in plain.recv(1000)
        context.load_cert_chain(*authority.issue("probe").files)
        with urllib.request.urlopen(ready, timeout=30, context=context) as answer:
            assert b'"status": "ok"' in answer.read()
        with urllib.request.urlopen(
            f"https://127.0.0.1:{port}/metrics", timeout=30, context=context
        ) as answer:
            assert answer.read() == b"up 1\n" * 50_000


class Echo(Workflow):
    @step
    async def echo(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.text)


async def test_a_worker_reaches_control_plane_and_queue_over_mutual_tls(
    authority: Authority, server_certificate: Certificate, tmp_path: Path
) -> None:
    """The worker shows the queue beside a control plane the same certificate."""
    tls: dict[str, Any] = TlsFiles(*server_certificate.files, authority.file).settings
    stack = await LocalStack.start(
        [],
        control_plane_config=ControlPlaneConfig(
            port=0, state_store_uri=f"sqlite:///{tmp_path}/state.db", **tls
        ),
        message_queue_config=SimpleMessageQueueConfig(port=0, **tls),
    )
    shown = authority.issue("worker").files
    async with stack:
        url = stack.control_plane_url
        assert url.startswith("https://")
        assert stack.message_queue_url.startswith("https://")
        public = stack.control_plane.config.public_settings()
        assert public["use_tls"]
        assert "tls_key" not in public
        config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="echo", **tls)
        nobody = ConnectionSettings(urls=[url], ca=authority.file)
        with pytest.raises(LlamaDeployError, match="serves only clients that show a certificate"):
            await run_workflow(Echo, config, control_plane_url=nobody)
        ready: asyncio.Future[WorkflowService] = asyncio.get_running_loop().create_future()
        settings = ConnectionSettings(urls=[url], ca=authority.file, client_certificate=shown)
        worker = asyncio.create_task(
            run_workflow(Echo, config, control_plane_url=settings, on_ready=ready.set_result)
        )
        worker.add_done_callback(lambda _: ready.cancel())
        service = await ready
        assert service.url.startswith("https://")
        own = ConnectionSettings(urls=[service.url], ca=authority.file, client_certificate=shown)
        async with asking(own, "asyncio") as ask:
            assert (await ask())["service_name"] == "echo"
        async with Client(url, ca=authority.file, client_certificate=shown) as client:
            assert await client.run("echo", text="hello") == "hello"
            assert await asyncio.to_thread(client.sync.run, "echo", text="again") == "again"
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
