"""How the clients reach a server: credentials, replicas and TLS. Each test runs with and without `await`."""

from __future__ import annotations

import asyncio
import logging
import traceback
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from llama_deploy import AsyncLlamaDeployClient, Client, ConfigError, LlamaDeployClient, SyncClient
from llama_deploy.errors import LlamaDeployError
from tests.integration.test_replicas import Replica, replicas
from tests.servers.certificates import Authority

SECRET = "s3cr3t-value"  # noqa: S105 - made up
BASIC = f"Basic {b64encode(f'zoe7:{SECRET}'.encode()).decode()}"
CreateSession: TypeAlias = Callable[[Client], Awaitable[str]]
CreateOldSession: TypeAlias = Callable[[str | Sequence[str]], Awaitable[str]]


@pytest.fixture(params=["asyncio", "threads"])
def create_old_session(request: pytest.FixtureRequest) -> CreateOldSession:
    """Return a function that creates a session with a client of 0.5."""

    async def create(urls: str | Sequence[str]) -> str:
        with pytest.warns(DeprecationWarning, match="is deprecated"):
            old = AsyncLlamaDeployClient(urls) if request.param == "asyncio" else LlamaDeployClient(urls)
        if isinstance(old, AsyncLlamaDeployClient):
            session_id = (await old.create_session()).session_id
            await old.close()
        else:
            session_id = (await asyncio.to_thread(old.create_session)).session_id
            old.close()
        return session_id

    return create


@pytest.fixture(params=["asyncio", "threads"])
def create_session(request: pytest.FixtureRequest) -> CreateSession:
    """Return a function that creates a session with a client, or with its `sync`, and closes it."""

    async def create(client: Client) -> str:
        async with client:
            if request.param == "asyncio":
                return (await client.core.sessions.create()).id
            return (await asyncio.to_thread(client.sync.core.sessions.create)).id

    return create


@pytest.fixture
async def server() -> AsyncIterator[Replica]:
    async with replicas("one") as (replica,):
        yield replica


async def test_the_api_key_and_headers_are_sent(create_session: CreateSession, server: Replica) -> None:
    await create_session(Client(server.url, api_key=SECRET, headers={"X-Team": "blue"}, timeout=5))
    (head,) = server.heads
    assert f"authorization: bearer {SECRET}" in head.lower()
    assert "x-team: blue" in head.lower()


async def test_the_api_key_comes_from_the_environment(
    create_session: CreateSession, server: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_DEPLOY_API_KEY", SECRET)
    await create_session(Client(server.url, timeout=5))
    assert f"Bearer {SECRET}" in server.heads[0]


async def test_an_authorization_header_replaces_the_api_key(
    create_session: CreateSession, server: Replica
) -> None:
    await create_session(Client(server.url, api_key=SECRET, headers={"authorization": "Basic xyz"}))
    assert "Basic xyz" in server.heads[0]
    assert SECRET not in server.heads[0]


async def test_the_next_replica_is_used(create_session: CreateSession, server: Replica) -> None:
    assert await create_session(Client(["http://127.0.0.1:1", server.url], timeout=5)) == "one"


async def test_replicas_come_from_the_environment(
    create_session: CreateSession, server: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", f"http://127.0.0.1:1, {server.url}")
    client = Client(timeout=5)
    assert client.control_plane_url == "http://127.0.0.1:1"
    assert await create_session(client) == "one"


async def test_headers_come_from_the_environment(
    create_session: CreateSession, server: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_DEPLOY_HEADERS", '{"X-Team": "blue"}')
    await create_session(Client(server.url, timeout=5))
    assert "X-Team: blue" in server.heads[0]


async def test_old_clients_read_the_same_environment(
    create_old_session: CreateOldSession, server: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_DEPLOY_HEADERS", '{"X-Team": "blue"}')
    monkeypatch.setenv("LLAMA_DEPLOY_API_KEY", SECRET)
    assert await create_old_session(["http://127.0.0.1:1", server.url]) == "one"
    assert "X-Team: blue" in server.heads[0]
    assert f"Bearer {SECRET}" in server.heads[0]


async def test_credentials_in_a_url_are_sent(create_session: CreateSession, server: Replica) -> None:
    await create_session(Client(server.url.replace("//", f"//zoe7:{SECRET}@"), timeout=5))
    assert BASIC in server.heads[0]
    assert "Host: zoe7" not in server.heads[0]


async def test_old_clients_send_credentials_in_a_url(
    create_old_session: CreateOldSession, server: Replica
) -> None:
    await create_old_session(server.url.replace("//", f"//zoe7:{SECRET}@"))
    assert BASIC in server.heads[0]


async def test_credentials_are_sent_only_to_the_replica_that_has_them(
    create_session: CreateSession, server: Replica
) -> None:
    await create_session(Client([f"http://zoe7:{SECRET}@127.0.0.1:1", server.url], timeout=5))
    assert "Authorization" not in server.heads[0]


async def test_credentials_are_in_no_error(
    create_session: CreateSession, server: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = []
    for port, status in (
        (1, ""),
        (server.port, "503 Away"),
        (server.port, "302 Found"),
        (server.port, "401 No"),
    ):
        server.status = status
        with pytest.raises(LlamaDeployError) as failed:
            await create_session(Client(f"http://zoe7:{SECRET}@127.0.0.1:{port}", timeout=0.5))
        shown += [*traceback.format_exception(failed.value), str(failed.value)]
        assert f"127.0.0.1:{port}" in str(failed.value)
    assert SECRET not in "".join([*shown, caplog.text])
    assert "zoe7" not in "".join([*shown[-1], caplog.text])


async def test_a_custom_authority_is_trusted(create_session: CreateSession, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("client")
    server = Replica("secure")
    await server.start(authority.server_context(authority.issue("server"), asks_clients=True))
    url = server.url.replace("http://", "https://")
    client = Client(url, ca=authority.file, client_certificate=(own.certificate, own.key), timeout=5)
    assert await create_session(client) == "secure"
    await server.stop()


@pytest.mark.parametrize("cls", [Client, SyncClient])
def test_secrets_are_not_shown(cls: type[Client | SyncClient], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = cls("http://127.0.0.1:1", api_key=SECRET, headers={"X-Key": SECRET})
    shown = [repr(client), str(client), repr(client.settings), client.settings.model_dump_json()]
    assert SECRET not in " ".join([*shown, caplog.text])


def test_contradicting_settings_raise() -> None:
    with pytest.raises(ConfigError, match="ca and disable_ssl=True contradict each other"):
        Client(ca="ca.pem", disable_ssl=True)
    with pytest.raises(ConfigError, match="does not begin with http://"):
        Client("nowhere")
