"""Inboxes and the state of sessions are bounded in bytes, and the errors name the limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.errors import OverloadedError, PayloadTooLargeError
from llama_deploy.types import EventDefinition
from llama_deploy.types.instance_protocol import JournalWrite, RunHeader, TaskDispatch
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.conftest import Instance, get, post, submit

MAX_INBOX = 4_000
MAX_STATE = 1_000


@pytest.fixture
def config(config: ControlPlaneConfig) -> ControlPlaneConfig:
    return config.model_copy(update={"max_inbox_bytes": MAX_INBOX, "max_session_state_bytes": MAX_STATE})


def event(size: int, character: str = "x", **fields: Any) -> EventDefinition:
    text = json.dumps(
        {"qualified_name": "app.Answer", "value": {"text": character * size}}, ensure_ascii=False
    )
    return EventDefinition(event_obj_str=text, **fields)


async def send(http: HttpConnection, task: str, sent: EventDefinition) -> None:
    await post(http, f"/tasks/{task}/events", sent.model_dump(mode="json"))


async def running(http: HttpConnection, instance: Instance, task_id: str, **fields: Any) -> TaskDispatch:
    await submit(http, task_id=task_id, **fields)
    dispatch = await instance.next_dispatch()
    assert (await instance.claim(dispatch)).granted
    return dispatch


def consumption(instance: Instance, dispatch: TaskDispatch, *numbers: int) -> JournalWrite:
    return JournalWrite(
        task_id=dispatch.task_id,
        attempt=dispatch.attempt,
        token=instance.token,
        first=0,
        events=[],
        seq=0,
        entry="{}",
        header=RunHeader(fingerprint="f", library_version="1"),
        consumed=list(numbers),
    )


async def test_an_inbox_takes_events_again_when_its_run_has_consumed_some(
    http: HttpConnection, instance: Instance
) -> None:
    dispatch = await running(http, instance, "t")
    await submit(http, task_id="other")
    await send(http, "t", event(2_000, idempotency_key="first"))
    await send(http, "t", event(1_000))
    with pytest.raises(OverloadedError, match=rf"limit of {MAX_INBOX}; .*max_inbox_bytes"):
        await send(http, "t", event(1_000))
    await send(http, "t", event(2_000, idempotency_key="first"))  # it is there already
    await send(http, "other", event(2_000))
    (reply,) = await instance.server.plane.attempts.journal([consumption(instance, dispatch, 1)])
    assert reply.stored
    await send(http, "t", event(1_000))


async def test_events_that_come_together_are_added_up(http: HttpConnection, instance: Instance) -> None:
    await submit(http, task_id="t")
    tasks = instance.server.plane.tasks
    outcomes = await asyncio.gather(
        *(tasks.send_event("t", event(1_000)) for _ in range(8)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes].count(OverloadedError) == 5


@pytest.mark.parametrize(("size", "character"), [(MAX_INBOX, "x"), (MAX_INBOX // 2, "é")])
async def test_an_event_that_never_fits_is_too_large(
    http: HttpConnection, instance: Instance, size: int, character: str
) -> None:
    await submit(http, task_id="t")
    with pytest.raises(PayloadTooLargeError, match="max_inbox_bytes") as caught:
        await send(http, "t", event(size, character))
    assert caught.value.limit_bytes == MAX_INBOX


async def put_state(http: HttpConnection, session: str, state: Mapping[str, Any], version: int) -> None:
    path = f"/sessions/{session}/state"
    await http.request(HttpRequest("PUT", path, json=state, headers={"If-Match": f'"{version}"'}))


async def test_the_state_of_a_session_does_not_grow_beyond_its_limit(http: HttpConnection) -> None:
    session = await post(http, "/sessions/create")
    await post(http, f"/sessions/{session}/state", {"a": "x" * 600})
    with pytest.raises(PayloadTooLargeError, match=rf"limit is {MAX_STATE}; .*max_session_state_bytes"):
        await post(http, f"/sessions/{session}/state", {"b": "x" * 600})
    with pytest.raises(PayloadTooLargeError, match="max_session_state_bytes"):
        await put_state(http, session, {"b": "é" * 600}, version=1)
    await put_state(http, session, {"b": "x" * 600}, version=1)
    assert await get(http, f"/sessions/{session}/state") == {"b": "x" * 600}


async def test_a_task_that_ends_with_too_much_state_fails(http: HttpConnection, instance: Instance) -> None:
    dispatch = await running(http, instance, "t")
    await instance.finish(dispatch, session_state={"__state": "x" * MAX_STATE})
    view = await get(http, "/tasks/t", wait=10)
    assert view["status"] == "failed"
    assert "max_session_state_bytes" in view["result"]["error"]["message"]
