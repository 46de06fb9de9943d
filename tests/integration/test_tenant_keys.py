"""Ids in requests cannot name the rows of another tenant."""

from __future__ import annotations

from typing import Final

import pytest

from llama_deploy.errors import InvalidRequestError
from llama_deploy.state_stores.base import StateStore
from llama_deploy.testing.records import a_session, a_task
from llama_deploy.types.keys import SEPARATOR, internal_key
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.conftest import Instance

FOREIGN: Final = internal_key("acme", "t")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/tasks", {"service_name": "echo", "task_id": FOREIGN}),
        ("POST", "/tasks", {"service_name": "echo", "session_id": FOREIGN}),
        ("POST", "/sessions/create", {"session_id": FOREIGN}),
        ("POST", "/sessions/s/tasks", {"input": "{}", "agent_id": "echo", "task_id": FOREIGN}),
        ("GET", f"/tasks/{FOREIGN}", None),
        ("GET", f"/tasks/{FOREIGN}/events", None),
        ("POST", f"/tasks/{FOREIGN}/events", {"event_obj_str": "{}"}),
        ("POST", f"/tasks/{FOREIGN}/cancel", None),
        ("GET", f"/sessions/{FOREIGN}", None),
        ("POST", f"/sessions/{FOREIGN}/delete", None),
        ("POST", f"/sessions/{FOREIGN}/tasks", {"input": "{}", "agent_id": "echo"}),
        ("GET", f"/sessions/{FOREIGN}/tasks", None),
        ("GET", f"/sessions/{FOREIGN}/current_task", None),
        ("GET", f"/sessions/{FOREIGN}/state", None),
        ("POST", f"/sessions/{FOREIGN}/state", {}),
        ("GET", f"/sessions/s/tasks/{FOREIGN}/result", None),
        ("GET", f"/sessions/{FOREIGN}/tasks/t/result", None),
        ("GET", f"/sessions/s/tasks/{FOREIGN}/result_stream", None),
        ("POST", f"/sessions/s/tasks/{FOREIGN}/send_event", {"event_obj_str": "{}"}),
    ],
)
async def test_the_key_of_another_tenant_is_not_an_id(
    http: HttpConnection, instance: Instance, store: StateStore, method: str, path: str, body: object
) -> None:
    await store.transact(
        lambda tx: (
            tx.sessions.insert([a_session(FOREIGN), a_session("s")]),
            tx.tasks.insert([a_task(FOREIGN, session_id=FOREIGN)]),
        )
    )
    with pytest.raises(InvalidRequestError):
        await http.request(HttpRequest(method, path.replace(SEPARATOR, "%1F"), json=body))


async def test_sessions_are_listed_by_the_id_that_clients_see(
    http: HttpConnection, store: StateStore
) -> None:
    await store.transact(lambda tx: tx.sessions.insert([a_session(FOREIGN)]))
    listed = await http.request(HttpRequest("GET", "/sessions"))
    assert {key: item["session_id"] for key, item in listed.items()} == {"t": "t"}
    with pytest.raises(InvalidRequestError):
        await http.request(HttpRequest("GET", "/sessions", params={"after": FOREIGN}))
