"""What can be seen of the clients without a server."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from llama_deploy import client as package
from llama_deploy.client import AsyncLlamaDeployClient, Client, LlamaDeployClient, SyncClient
from llama_deploy.client.aio import apiserver as aio_apiserver
from llama_deploy.client.aio import core as aio_core
from llama_deploy.client.aio import legacy as aio_legacy
from llama_deploy.client.aio import task as aio_task
from llama_deploy.client.sync import apiserver as sync_apiserver
from llama_deploy.client.sync import core as sync_core
from llama_deploy.client.sync import legacy as sync_legacy
from llama_deploy.client.sync import task as sync_task


def classes(module: ModuleType) -> list[type]:
    return [
        cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__
    ]


def surface(cls: type) -> dict[str, Any]:
    """Return the public methods with their parameters' names, kinds and defaults, and the properties."""
    return {
        name: [(p.name, p.kind, p.default) for p in inspect.signature(member).parameters.values()]
        if inspect.isfunction(member)
        else None
        for name, member in vars(cls).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    }


@pytest.mark.parametrize(
    ("aio", "sync"),
    [
        (aio_core, sync_core),
        (aio_task, sync_task),
        (aio_apiserver, sync_apiserver),
        (aio_legacy, sync_legacy),
    ],
)
def test_the_sync_client_has_the_same_surface(aio: ModuleType, sync: ModuleType) -> None:
    def name(cls: type) -> str:
        return cls.__name__.removeprefix("Sync").removeprefix("Async")

    assert {name(cls): surface(cls) for cls in classes(aio)} == {
        name(cls): surface(cls) for cls in classes(sync)
    }


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (aio_core.ServiceCollection.register, ["service_def"]),
        (aio_core.ServiceCollection.deregister, ["name"]),
        (aio_core.SessionCollection.get, ["id"]),
        (aio_core.SessionCollection.get_or_create, ["id"]),
        (aio_core.SessionCollection.delete, ["id"]),
        (aio_core.Session.create_task, ["task_def"]),
        (aio_core.Session.send_event, ["service_name", "task_id", "ev"]),
        (aio_core.Session.send_event_def, ["task_id", "ev_def"]),
        (aio_apiserver.DeploymentCollection.create, ["file", "reload"]),
        (aio_apiserver.DeploymentCollection.get, ["name"]),
        (aio_apiserver.DeploymentTasks.run, ["task_def"]),
        (aio_apiserver.DeploymentTasks.create, ["task_def"]),
        (aio_apiserver.DeploymentSessions.delete, ["id"]),
        (aio_apiserver.DeploymentTask.send_event, ["ev", "service_name"]),
    ],
)
def test_parameters_are_called_as_in_0_6(method: Callable[..., Any], names: list[str]) -> None:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == names


def test_the_sync_client_is_the_client_without_sync() -> None:
    with_sync = surface(Client)
    del with_sync["sync"]
    assert with_sync == surface(SyncClient)


def test_all_that_is_exported_is_there() -> None:
    assert all(hasattr(package, name) for name in package.__all__)


def test_settings_come_from_arguments_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", "http://elsewhere:1")
    monkeypatch.setenv("LLAMA_DEPLOY_TIMEOUT", "7")
    client = Client(timeout=3)
    assert client.control_plane_url == "http://elsewhere:1"
    assert client.timeout == 3
    assert client.api_server_url == "http://localhost:4501"
    assert client.sync.control_plane_url == "http://elsewhere:1"
    assert client.sync.timeout == 3
    assert client.sync is client.sync


@pytest.mark.parametrize("bad", [{"timeout": 0}, {"timeout": "soon"}, {"time_out": 3}])
def test_settings_that_cannot_work_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Client(**bad)


def test_only_the_timeout_changes_later() -> None:
    client = Client()
    client.timeout = 5
    assert client.core.driver.settings.timeout == 5
    with pytest.raises(ValidationError):
        client.control_plane_url = "http://elsewhere:1"


def test_a_client_is_closed_any_number_of_times() -> None:
    client = Client()
    with client.sync:
        pass

    async def close() -> None:
        await client.close()
        await client.close()

    asyncio.run(close())
    asyncio.run(close())


class Config:
    url = "http://elsewhere:1"


def test_the_old_clients_name_their_successor() -> None:
    with pytest.warns(DeprecationWarning, match=r"llama_deploy\.Client"):
        AsyncLlamaDeployClient(Config(), timeout=3)
    with pytest.warns(DeprecationWarning, match=r"llama_deploy\.Client and its"):
        LlamaDeployClient(Config(), timeout=3)
