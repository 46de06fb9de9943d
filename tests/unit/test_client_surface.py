"""The clients without a server: their names, signatures, help and settings."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llama_deploy import client as package
from llama_deploy.client import Client, SyncClient, TaskHandle
from llama_deploy.client.aio import apiserver, core
from llama_deploy.errors import ConfigError

ROOT = Path(__file__).parents[2]


def run_generator(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ".ci/sync_client.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_client_without_await_is_up_to_date() -> None:
    done = run_generator("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def surface(cls: type) -> dict[str, Any]:
    """Return the public methods with their parameters' names, kinds and defaults, and the properties."""
    return {
        name: [(p.name, p.kind, p.default) for p in inspect.signature(member).parameters.values()]
        if inspect.isfunction(member)
        else None
        for name, member in vars(cls).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    }


def test_the_client_without_await_has_the_same_methods() -> None:
    with_sync = surface(Client)
    del with_sync["sync"]
    assert with_sync == surface(SyncClient)


@pytest.mark.parametrize("cls", [Client, SyncClient])
def test_the_constructor_has_a_plain_signature(cls: type) -> None:
    parameters = inspect.signature(cls).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["control_plane_url"]
    assert {"api_server_url", "disable_ssl", "timeout", "poll_interval"} <= set(parameters)
    hints = typing.get_type_hints(vars(cls)["__init__"])
    assert {p.name for p in parameters.values()} <= set(hints)
    assert Any not in hints.values()


@pytest.mark.parametrize(
    "documented",
    [Client, Client.submit, Client.run, SyncClient, SyncClient.submit, SyncClient.run, TaskHandle],
)
def test_help_shows_an_example(documented: object) -> None:
    text = inspect.getdoc(documented) or ""
    assert "Example:\n    ```python\n" in text
    if documented in (SyncClient, SyncClient.submit, SyncClient.run):
        assert "await" not in text
        assert "async" not in text


def test_help_explains_each_parameter_and_attribute_of_the_client() -> None:
    text = inspect.getdoc(Client) or ""
    for name in [*inspect.signature(Client).parameters, "core", "apiserver", "settings"]:
        assert f"\n    {name}: " in text
    members = {name for name in vars(Client) if not name.startswith("_")}
    assert members == {
        *(
            "api_server_url",
            "close",
            "control_plane_url",
            "disable_ssl",
            "events",
            "run",
            "submit",
            "sync",
            "task",
            "timeout",
        )
    }


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (core.ServiceCollection.register, ["service_def"]),
        (core.ServiceCollection.deregister, ["name"]),
        (core.SessionCollection.get, ["id"]),
        (core.SessionCollection.get_or_create, ["id"]),
        (core.SessionCollection.delete, ["id"]),
        (core.Session.create_task, ["task_def"]),
        (core.Session.send_event, ["service_name", "task_id", "ev"]),
        (core.Session.send_event_def, ["task_id", "ev_def"]),
        (apiserver.DeploymentCollection.create, ["file", "reload"]),
        (apiserver.DeploymentCollection.get, ["name"]),
        (apiserver.DeploymentTasks.run, ["task_def"]),
        (apiserver.DeploymentTasks.create, ["task_def"]),
        (apiserver.DeploymentSessions.delete, ["id"]),
        (apiserver.DeploymentTask.send_event, ["ev", "service_name"]),
    ],
)
def test_parameters_have_the_names_of_0_6(method: Callable[..., Any], names: list[str]) -> None:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == names


def test_all_exported_names_exist() -> None:
    assert all(hasattr(package, name) for name in package.__all__)


def test_arguments_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", "http://elsewhere:1")
    monkeypatch.setenv("LLAMA_DEPLOY_TIMEOUT", "7")
    assert Client("http://here:1").control_plane_url == "http://here:1"
    client = Client(timeout=3)
    assert client.control_plane_url == "http://elsewhere:1"
    assert client.timeout == 3
    assert client.api_server_url == "http://localhost:4501"
    assert (client.disable_ssl, client.poll_interval) == (False, 0.5)
    assert client.sync.control_plane_url == "http://elsewhere:1"
    assert client.sync.timeout == 3
    assert client.sync is client.sync


@pytest.mark.parametrize("bad", [{"timeout": 0}, {"timeout": "soon"}])
def test_invalid_settings_raise(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Client(**bad)


CLIENTS: list[Callable[[Any], Client | SyncClient]] = [Client, SyncClient, lambda url: Client(url).sync]


@pytest.mark.parametrize("create", CLIENTS)
def test_credentials_in_a_url_are_kept_and_not_shown(
    create: Callable[[Any], Client | SyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "https://ann:S3cret@host:8000"
    expected = "Basic YW5uOlMzY3JldA=="
    monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", url)
    for client in (create(url), create([url, "https://host-2"]), create(None)):
        assert client.control_plane_url == "https://host:8000"
        sent = client.settings.connect_to(client.settings.control_plane_url)
        assert sent.headers_for(sent.urls[0])["Authorization"] == expected
        shown = f"{client!r} {client.settings!r} {client.settings} {client.settings.model_dump()}"
        shown += f"{client.settings.model_dump_json()} {client.control_plane_url} {sent}"
        assert "S3cret" not in shown
        assert "ann" not in shown


@pytest.mark.parametrize(
    ("key", "reason"),
    [("S3cret\n", "line break"), ("S3\r\ncret", "line break"), ("", "empty"), ("S3 é", "ASCII")],
)
@pytest.mark.parametrize("cls", [Client, SyncClient])
def test_an_api_key_that_no_header_can_carry(
    cls: type[Client | SyncClient], key: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"the API key .*{reason}.* on one line") as refused:
        cls(api_key=key)
    assert "S3" not in str(refused.value)
    monkeypatch.setenv("LLAMA_DEPLOY_API_KEY", key)
    with pytest.raises(ConfigError, match=f"the API key .*{reason}"):
        cls()


def test_only_the_timeout_can_change_later() -> None:
    client = Client()
    client.timeout = 5
    assert client.settings.timeout == 5
    assert client.core.api.settings.timeout == 5
    with pytest.raises(ValidationError):
        client.timeout = 0
    with pytest.raises(AttributeError):
        client.control_plane_url = "http://elsewhere:1"  # type: ignore[misc]


def test_close_is_idempotent() -> None:
    client = Client()
    with client.sync:
        pass

    async def close() -> None:
        await client.close()
        await client.close()

    asyncio.run(close())
    asyncio.run(close())
