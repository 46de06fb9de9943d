"""How the clients reach a server: credentials, replicas and TLS. Each test runs with and without `await`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from llama_deploy import Client, ConfigError, SyncClient
from tests.integration.test_replicas import Replica, replicas
from tests.servers.certificates import Authority

SECRET = "s3cr3t-value"  # noqa: S105 - made up
CreateSession: TypeAlias = Callable[[Client], Awaitable[str]]


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
