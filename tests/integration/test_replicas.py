"""Connections to several replicas of a server, and over TLS, for asyncio and for threads."""

from __future__ import annotations

import asyncio
import logging
import ssl
import traceback
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import (
    Client,
    ControlPlaneConfig,
    ControlPlaneServer,
    QueueMessage,
    SimpleMessageQueue,
    WorkflowServiceConfig,
)
from llama_deploy.deploy import run_workflow
from llama_deploy.errors import ConfigError, InternalServerError, UnavailableError
from llama_deploy.message_consumers import RemoteMessageConsumer
from llama_deploy.message_queues import SimpleMessageQueueConfig, SimpleMessageQueueServer
from llama_deploy.services.gateway import HttpGateway
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.tcp_proxy import TcpProxy
from llama_deploy.types import ServiceDefinition
from llama_deploy.types.instance_protocol import Heartbeat
from llama_deploy.web.connection_settings import Address, ConnectionSettings
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from llama_deploy.web.sync_http_connection import SyncHttpConnection
from tests.integration.test_connection import Async, Either, SyncInThreads
from tests.integration.test_simple_queue_server import free_port
from tests.servers.certificates import Authority

SECRET = "s3cr3t-value"  # noqa: S105 - made up
WHO = HttpRequest("GET", "/who")
Connect: TypeAlias = Callable[[Address], Either]


class Replica:
    """An HTTP server that answers with its name and what it was sent, or does not answer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = "200 OK"
        self.drops = False
        self.heads: list[str] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                if self.drops:
                    break
                body = f'"{self.name}"\n'
                writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


@asynccontextmanager
async def replicas(*names: str) -> AsyncIterator[list[Replica]]:
    started = [Replica(name) for name in names]
    for replica in started:
        await replica.start()
    yield started
    for replica in started:
        await replica.stop()


@pytest.fixture(params=["async", "sync"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    opened: list[Either] = []

    def open_connection(address: Address) -> Either:
        kind = request.param
        opened.append(
            SyncInThreads(SyncHttpConnection(address)) if kind == "sync" else Async(HttpConnection(address))
        )
        return opened[-1]

    yield open_connection
    for connection in opened:
        await connection.close()


async def test_requests_go_to_the_next_replica_when_one_is_gone_and_it_may_come_back(
    connect: Connect,
) -> None:
    async with replicas("first", "second") as (first, second):
        connection = connect([first.url, second.url])
        assert await connection.request(WHO) == "first"
        await first.stop()
        # The kept connection has broken or is not opened again; either way the next request is answered.
        await until_answered(connection, "second")
        await first.start()
        assert await connection.request(WHO) == "second"
        await second.stop()
        await until_answered(connection, "first")


async def until_answered(connection: Either, name: str) -> None:
    try:
        answer = await connection.request(WHO)
    except UnavailableError:
        answer = await connection.request(WHO)
    assert answer == name


async def test_a_replica_that_is_not_there_costs_no_request(connect: Connect) -> None:
    async with replicas("second") as (second,):
        connection = connect([f"http://127.0.0.1:{free_port()}", second.url])
        assert await connection.request(WHO) == "second"
        lines: list[bytes] = []
        await connect([f"http://127.0.0.1:{free_port()}", second.url]).lines(WHO, lines)
        assert lines == [b'"second"']


async def test_a_request_that_may_have_arrived_is_not_sent_again(connect: Connect) -> None:
    async with replicas("first", "second") as (first, second):
        first.drops = True
        connection = connect([first.url, second.url])
        with pytest.raises(UnavailableError, match=first.url):
            await connection.request(HttpRequest("POST", "/who", json={}))
        assert not second.heads
        assert await connection.request(WHO) == "second"


async def test_after_an_answer_of_unavailability_the_next_request_goes_elsewhere(connect: Connect) -> None:
    async with replicas("first", "second") as (first, second):
        first.status = "503 Service Unavailable"
        connection = connect([first.url, second.url])
        with pytest.raises(UnavailableError):
            await connection.request(WHO)
        assert await connection.request(WHO) == "second"


async def test_the_error_names_all_replicas_when_none_answers(connect: Connect) -> None:
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    with pytest.raises(UnavailableError, match="no replica answers") as caught:
        await connect(urls).request(WHO)
    assert all(url in str(caught.value) for url in urls)


async def test_requests_that_fail_together_move_on_once(connect: Connect) -> None:
    async with replicas("second") as (second,):
        connection = connect([f"http://127.0.0.1:{free_port()}", second.url])
        assert await asyncio.gather(*(connection.request(WHO) for _ in range(20))) == ["second"] * 20


# -- TLS and headers


@asynccontextmanager
async def over_tls(authority: Authority, *, asks_clients: bool = False) -> AsyncIterator[str]:
    replica = Replica("secure")
    await replica.start(authority.server_context(authority.issue("server"), asks_clients=asks_clients))
    yield replica.url.replace("http:", "https:")
    await replica.stop()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_a_certificate_of_an_own_authority_is_trusted_only_with_it(
    connect: Connect, authority: Authority
) -> None:
    async with over_tls(authority) as url:
        with pytest.raises(UnavailableError, match=r"(?i)certificate"):
            await connect(url).request(WHO)
        settings = ConnectionSettings(urls=[url], ca=authority.file)
        assert await connect(settings).request(WHO) == "secure"


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
async def test_any_certificate_is_accepted_when_asked(connect: Connect, authority: Authority) -> None:
    async with over_tls(authority) as url:
        assert await connect(ConnectionSettings(urls=[url], verify_tls=False)).request(WHO) == "secure"


async def test_a_client_shows_its_certificate(connect: Connect, authority: Authority) -> None:
    own = authority.issue("client")
    async with over_tls(authority, asks_clients=True) as url:
        with pytest.raises(UnavailableError):
            await connect(ConnectionSettings(urls=[url], ca=authority.file)).request(WHO)
        settings = ConnectionSettings(
            urls=[url], ca=authority.file, client_certificate=(own.certificate, own.key)
        )
        assert await connect(settings).request(WHO) == "secure"


async def test_a_replica_with_a_wrong_certificate_is_sent_nothing(
    connect: Connect, authority: Authority, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    async with over_tls(Authority(other)) as wrong, over_tls(authority) as url:
        settings = ConnectionSettings(urls=[wrong, url], ca=authority.file)
        assert await connect(settings).request(WHO) == "secure"


@pytest.mark.parametrize("broken", ["ca", "certificate", "password"])
async def test_files_that_cannot_be_used_are_named(
    connect: Connect, authority: Authority, tmp_path: Path, broken: str
) -> None:
    encrypted = authority.issue("encrypted", password=b"secret")
    (tmp_path / "empty.pem").touch()
    settings = {
        "ca": ConnectionSettings(urls=["https://127.0.0.1:1"], ca=tmp_path / "missing.pem"),
        "certificate": ConnectionSettings(
            urls=["https://127.0.0.1:1"], client_certificate=(tmp_path / "empty.pem", encrypted.key)
        ),
        "password": ConnectionSettings(
            urls=["https://127.0.0.1:1"], client_certificate=(encrypted.certificate, encrypted.key)
        ),
    }[broken]
    named = {"ca": "missing.pem", "certificate": "empty.pem", "password": "unencrypted key"}[broken]
    with pytest.raises(ConfigError, match=named):
        await connect(settings).request(WHO)


async def test_headers_travel_and_are_not_shown(connect: Connect) -> None:
    async with replicas("first") as (first,):
        settings = ConnectionSettings(urls=[first.url], headers={"X-Api-Key": SECRET})
        connection = connect(settings)
        assert await connection.request(HttpRequest("POST", "/who", json={"a": 1})) == "first"
        assert f"X-Api-Key: {SECRET}".lower() in first.heads[0].lower()
        assert "content-type: application/json" in first.heads[0].lower()
        first.drops = True
        with pytest.raises(UnavailableError) as caught:
            await connection.request(WHO)
    assert SECRET not in f"{caught.value!r} {settings!r} {settings}"


@pytest.mark.parametrize(
    "fields",
    [
        {"urls": []},
        {"urls": ["localhost:8000"]},
        {"urls": ["ftp://localhost"]},
        {"urls": ["http://"]},
        {"urls": ["http://[::1"]},
        {"urls": ["http://a:99999"]},
        {"urls": ["http://a?b"]},
        {"urls": [f"http://us%3Aer:{SECRET}@a"]},
        {"urls": ["http://a"], "headers": {"a b": SECRET}},
        {"urls": ["http://a"], "headers": {"a": SECRET + "\r\nb: c"}},
        {"urls": ["http://a"], "ca": "ca.pem", "verify_tls": False},
    ],
)
def test_settings_that_cannot_work_are_refused_without_showing_secrets(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        ConnectionSettings(**fields)
    assert SECRET not in str(caught.value)


def test_one_url_several_and_settings_are_an_address() -> None:
    several = ConnectionSettings.of(["http://a/", "http://b"])
    assert several.urls == ("http://a", "http://b")
    assert ConnectionSettings.of(several) is several
    assert ConnectionSettings.of("http://a/base/").urls == ("http://a/base",)


# -- what uses them


@asynccontextmanager
async def two_ways(server: ControlPlaneServer) -> AsyncIterator[tuple[TcpProxy, Sequence[str]]]:
    """Two proxies before one control plane, which is what two replicas look like."""
    async with TcpProxy() as first, TcpProxy() as second:
        ports = [await proxy.start(server.config.port or 0) for proxy in (first, second)]
        yield first, [f"http://127.0.0.1:{port}" for port in ports]


async def test_a_gateway_goes_on_when_its_control_plane_is_gone(server: ControlPlaneServer) -> None:
    async with two_ways(server) as (first, urls):
        gateway = HttpGateway(ConnectionSettings(urls=urls))
        beat = Heartbeat(instance_id="one", held=[])
        assert await gateway.get_session_state("none") is None
        await asyncio.to_thread(gateway.beat, beat)
        await first.close()

        async def answered() -> bool:
            try:
                await asyncio.to_thread(gateway.beat, beat)
                return await gateway.get_session_state("none") is None
            except UnavailableError:
                return False

        await eventually(answered)
        await gateway.close()


@pytest.mark.parametrize("lease_seconds", [1.5])
async def test_a_heartbeat_reaches_another_replica_within_the_lease(
    server: ControlPlaneServer, lease_seconds: float
) -> None:
    async with two_ways(server) as (first, urls):
        gateway = HttpGateway(ConnectionSettings(urls=urls))
        await gateway.register(ServiceDefinition(service_name="echo", instance_id="one"))
        beat = Heartbeat(instance_id="one")
        await asyncio.to_thread(gateway.beat, beat)
        first.hold()
        async with asyncio.timeout(lease_seconds):
            with pytest.raises(UnavailableError):
                await asyncio.to_thread(gateway.beat, beat)
            assert (await asyncio.to_thread(gateway.beat, beat)).known
        await gateway.close()


async def test_a_service_sends_credentials_in_the_url_of_its_control_plane(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with replicas("plane") as (plane,):
        gateway = HttpGateway(plane.url.replace("//", f"//zoe7:{SECRET}@"))
        shown = [repr(gateway), str(vars(gateway))]
        for call in (
            gateway.register(ServiceDefinition(service_name="echo", instance_id="one")),
            asyncio.to_thread(gateway.beat, Heartbeat(instance_id="one")),
        ):
            with pytest.raises(InternalServerError, match=plane.url) as failed:
                await call
            shown += [*traceback.format_exception(failed.value), caplog.text]
        await gateway.close()
    basic = b64encode(f"zoe7:{SECRET}".encode()).decode()
    assert [f"Authorization: Basic {basic}" in head for head in plane.heads] == [True, True]
    assert SECRET not in "".join(shown)


class Echo(Workflow):
    @step
    async def echo(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("text"))


async def test_a_workflow_is_deployed_with_several_control_planes(tmp_path: Path) -> None:
    config = ControlPlaneConfig(port=0, state_store_uri=f"sqlite:///{tmp_path}/state.db")
    async with (
        SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as queue_server,
        queue_server.local_queue() as queue,
        ControlPlaneServer(queue, config=config) as server,
        Client(control_plane_url=server.config.url) as client,
    ):
        ready = asyncio.Event()
        service_config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="parrot")
        urls = [f"http://127.0.0.1:{free_port()}", server.config.url]
        deployed = asyncio.create_task(
            run_workflow(Echo(), service_config, control_plane_url=urls, on_ready=lambda _: ready.set())
        )
        await ready.wait()
        assert await client.run("parrot", text="hello") == "hello"
        deployed.cancel()
        await asyncio.wait([deployed])


@pytest.mark.parametrize("form", ["files", "context and one file"])
async def test_a_simple_queue_is_reached_over_tls_with_a_client_certificate(
    authority: Authority, tmp_path: Path, form: str
) -> None:
    own = authority.issue("client")
    both = tmp_path / "both.pem"
    both.write_bytes(own.certificate.read_bytes() + own.key.read_bytes())
    tls = authority.server_context(authority.issue("server"), asks_clients=True)
    async with SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as server, TcpProxy() as proxy:
        port = await proxy.start(server.config.port, tls=tls)
        forms: dict[str, dict[str, Any]] = {
            "files": {"verify": str(authority.file), "cert": [str(own.certificate), str(own.key)]},
            "context and one file": {
                "verify": ssl.create_default_context(cafile=authority.file),
                "cert": both,
                "timeout": None,
            },
        }
        options = forms[form]
        config = SimpleMessageQueueConfig(port=port, use_ssl=True, client_kwargs=options)
        async with await SimpleMessageQueue.connect(config) as queue:
            await queue.publish(QueueMessage(), "t")
        url = f"https://127.0.0.1:{port}/messages/t"
        consumer = RemoteMessageConsumer(url=url, client_kwargs=options)
        await consumer.process_message(QueueMessage())
        await consumer.close()
        async with server.local_queue() as local, await local.subscribe("t") as subscription:
            assert len(await subscription.receive(10)) == 2
