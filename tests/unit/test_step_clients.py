"""For whom the requests of clients act in steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llama_deploy import Client, SyncClient
from llama_deploy.errors import ConfigError
from llama_deploy.running_task import TaskInfo, running_task
from llama_deploy.types.owners import SUBJECT_HEADER, TENANT_HEADER
from llama_deploy.web.connection_settings import ConnectionSettings
from llama_deploy.web.serving_control_plane import ServingControlPlane, serving_control_plane
from llama_deploy.web.step_clients import ClientOrigin

URL = "http://127.0.0.1:9"
INSTANCE = ConnectionSettings(urls=URL, headers={"authorization": "Bearer of-the-worker"})
ZOE = TaskInfo("zoes", "s", "letters", 1, "acme", "zoe")
BETA = TaskInfo("betas", "s", "letters", 1, "beta")
NOBODYS = TaskInfo("nobodys", "s", "letters", 1)


def in_step(task: TaskInfo, call: Callable[[], Any]) -> Any:
    """Call a function as a step of a task."""
    context = copy_context()
    context.run(serving_control_plane.set, ServingControlPlane(INSTANCE))
    context.run(running_task.set, task)
    return context.run(call)


def in_thread(call: Callable[[], Any]) -> Any:
    """Call a function in a new thread, which has an empty context."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def connected(key: str = "of-the-worker", url: str = URL) -> ConnectionSettings:
    """Return the connection of a client that is created here."""
    settings = ConnectionSettings(urls=url, headers={"Authorization": f"Bearer {key}"})
    return ClientOrigin.here().connected(settings)


def owner_in(settings: ConnectionSettings) -> tuple[str | None, str | None]:
    sent: Mapping[str, str] = settings.headers_for(settings.urls[0])
    return sent.get(TENANT_HEADER), sent.get(SUBJECT_HEADER)


@pytest.mark.parametrize("url", [URL, "http://localhost:9"])
def test_the_key_of_the_instance_acts_for_the_task_wherever_the_client_was_created(url: str) -> None:
    before = connected(url=url)
    within = in_step(ZOE, lambda: connected(url=url))
    for settings in (before, within):
        assert in_step(ZOE, partial(owner_in, settings)) == ("acme", "zoe")
    assert owner_in(before) == (None, None)
    assert in_thread(lambda: owner_in(within)) == ("acme", "zoe")
    assert in_step(NOBODYS, lambda: owner_in(before)) == (None, None)


def test_another_key_acts_for_whom_it_is() -> None:
    for settings in (connected("of-acme"), in_step(ZOE, lambda: connected("of-acme"))):
        assert in_step(ZOE, partial(owner_in, settings)) == (None, None)
        assert in_thread(partial(owner_in, settings)) == (None, None)


def test_a_client_that_was_created_for_an_owner_does_not_work_for_another_one() -> None:
    settings = in_step(ZOE, connected)
    for other in (BETA, NOBODYS):
        with pytest.raises(ConfigError, match="created in a step of a task of another owner"):
            in_step(other, lambda: owner_in(settings))


@pytest.mark.parametrize("kind", [Client, SyncClient])
def test_a_key_that_a_step_names_replaces_that_of_the_instance(
    kind: type[Client | SyncClient], tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("own")
    for make in (partial(kind, api_key="own"), partial(kind, api_key_file=file)):
        made = in_step(ZOE, make)
        settings = made.settings.connect_to(made.settings.control_plane_url)
        assert (list(settings.urls), settings.headers) == ([URL], {"Authorization": "Bearer own"})
