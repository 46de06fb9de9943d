"""The control plane over HTTP, with a real queue and a real store, and an instance played by the test."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import pytest

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.errors import (
    ConfigError,
    ConflictError,
    InvalidRequestError,
    PayloadTooLargeError,
    ServiceNotFoundError,
    SessionBusyError,
    SessionNotFoundError,
    StateConflictError,
    StoreLockedError,
    TaskFinishedError,
    TaskNotFoundError,
    UnavailableError,
)
from llama_deploy.message_queues import (
    LocalMessageQueue,
    SimpleMessageQueue,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import (
    ServiceDefinition,
    SessionOptions,
    TaskSubmission,
)
from llama_deploy.types.instance_protocol import (
    ReleaseRequest,
    TaskDispatch,
)
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.full_disks import no_disk_writes
from tests.integration.conftest import CONTROL, Instance, beat, get, post, read_stream, submit

DEEP = '{"a": ' + "[" * 300 + "]" * 300 + "}"
TOO_DEEP_FOR_PYTHON = '{"a": ' + "[" * 5000 + "]" * 5000 + "}"


async def test_a_task_goes_all_the_way(http: HttpConnection, instance: Instance) -> None:
    running = asyncio.create_task(submit(http, arguments={"x": 1}, wait=10))
    dispatch = await instance.next_dispatch()
    assert dispatch.attempt == 1
    claimed = await instance.claim(dispatch)
    assert (claimed.granted, json.loads(claimed.input), claimed.omitted) == (True, {"x": 1}, [])
    view = await get(http, f"/tasks/{dispatch.task_id}")
    assert (view["status"], view["instance_id"]) == ("running", "one")
    await instance.stream(dispatch, first=0, numbers=range(3))
    await instance.finish(dispatch, first=3)
    done = await running
    assert done["status"] == "succeeded"
    assert done["result"]["result"] == "done"
    events = await read_stream(http, f"/tasks/{dispatch.task_id}/events")
    assert [event["index"] for event in events] == [0, 1, 2, 3]
    assert [event["data"].get("n") for event in events[:3]] == [0, 1, 2]
    assert [event["terminal"] for event in events] == [False, False, False, True]


async def test_the_same_submission_twice_makes_one_task(http: HttpConnection, instance: Instance) -> None:
    first = await submit(http, task_id="mine", arguments={"x": 1})
    again = await submit(http, task_id="mine", arguments={"x": 1})
    assert again == first
    with pytest.raises(ConflictError, match="another service, session or arguments"):
        await submit(http, task_id="mine", arguments={"x": 2})


async def test_the_order_of_the_arguments_does_not_make_another_task(
    http: HttpConnection, instance: Instance
) -> None:
    first = await submit(http, task_id="t", arguments={"a": 1, "b": {"c": [1, 2], "d": None}})
    assert await submit(http, task_id="t", arguments={"b": {"d": None, "c": [1, 2]}, "a": 1}) == first
    session = first["session_id"]
    for text, agrees in [('{"b": {"d": null, "c": [1, 2]}, "a": 1}', True), ('{"a": 1}', False)]:
        task = {"task_id": "t", "session_id": session, "agent_id": "echo", "input": text}
        status, _ = await http.send(HttpRequest("POST", f"/sessions/{session}/tasks", json=task))
        assert (status == 200) is agrees
    for other in [
        {"a": 1, "b": {"c": [2, 1], "d": None}},  # the order of a list is part of it
        {"a": True, "b": {"c": [1, 2], "d": None}},
        {"a": 1.0, "b": {"c": [1, 2], "d": None}},
        {"a": 1, "b": {"c": [1, 2]}},
    ]:
        with pytest.raises(ConflictError):
            await submit(http, task_id="t", arguments=other)


async def test_a_long_poll_that_finds_no_end_says_how_the_task_stands(
    http: HttpConnection, instance: Instance
) -> None:
    view = await submit(http, wait=0.05)
    assert view["status"] == "queued"
    assert view["result"] is None


async def test_a_second_claim_of_another_instance_is_refused(
    http: HttpConnection, server: ControlPlaneServer, instance: Instance
) -> None:
    await submit(http)
    dispatch = await instance.next_dispatch()
    granted = await instance.claim(dispatch)
    assert granted.granted
    await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="two"))
    other = Instance(server, instance.queue, instance.work, "two")
    refused = await other.claim(dispatch)
    assert not refused.granted
    assert "running in attempt 1" in refused.reason
    assert await instance.claim(dispatch) == granted


async def test_a_forged_result_is_refused(http: HttpConnection, instance: Instance) -> None:
    await submit(http, task_id="t")
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)
    token, instance.token = instance.token, "forged"
    await instance.finish(dispatch, result="forged")
    instance.token = token
    await instance.finish(dispatch, result="real")
    view = await get(http, "/tasks/t", wait=10)
    assert view["result"]["result"] == "real"


async def test_an_end_is_final(http: HttpConnection, instance: Instance) -> None:
    await submit(http, task_id="t")
    dispatch = await instance.run_one(result="first")
    await get(http, "/tasks/t", wait=10)
    await instance.finish(dispatch, result="second")
    with pytest.raises(TaskFinishedError, match="succeeded"):
        await post(http, "/tasks/t/cancel")
    assert (await get(http, "/tasks/t"))["result"]["result"] == "first"


async def test_events_that_arrive_twice_or_too_early_make_one_stream(
    http: HttpConnection, instance: Instance
) -> None:
    await submit(http, task_id="t")
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)
    await instance.stream(dispatch, first=4, numbers=range(4, 6))
    await instance.stream(dispatch, first=0, numbers=range(3))
    await instance.stream(dispatch, first=2, numbers=range(2, 4))
    await instance.finish(dispatch, first=6)
    events = await read_stream(http, "/tasks/t/events")
    assert [event["data"].get("n") for event in events[:-1]] == [0, 1, 2, 3, 4, 5]
    assert [event["index"] for event in events] == list(range(7))


async def test_a_reader_may_begin_anywhere_and_any_number_may_read(
    http: HttpConnection, instance: Instance
) -> None:
    await submit(http, task_id="t")
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)
    readers = [asyncio.create_task(read_stream(http, "/tasks/t/events")) for _ in range(3)]
    for n in range(20):
        await instance.stream(dispatch, first=n, numbers=range(n, n + 1))
    await instance.finish(dispatch, first=20)
    complete = await readers[0]
    assert len(complete) == 21
    assert [await reader for reader in readers[1:]] == [complete, complete]
    assert await read_stream(http, "/tasks/t/events?after=17") == complete[18:]
    assert await read_stream(http, "/tasks/t/events?after=20") == []
    old_style = await read_stream(http, f"/sessions/{dispatch.session_id}/tasks/t/result_stream")
    assert old_style == [event["data"] for event in complete]


async def test_tasks_of_a_session_run_one_after_the_other(http: HttpConnection, instance: Instance) -> None:
    session = await post(http, "/sessions/create")
    for name in ("a", "b", "c"):
        await submit(http, task_id=name, session_id=session)
    statuses = [(await get(http, f"/tasks/{name}"))["status"] for name in ("a", "b", "c")]
    assert statuses == ["queued", "pending", "pending"]
    assert [(await instance.run_one()).task_id for _ in range(3)] == ["a", "b", "c"]


async def test_tasks_of_a_parallel_session_run_together(http: HttpConnection, instance: Instance) -> None:
    session = await post(http, "/sessions/create", {"policy": "parallel"})
    for name in ("a", "b"):
        assert (await submit(http, task_id=name, session_id=session))["status"] == "queued"


async def test_a_rejecting_session_refuses_the_second_task(http: HttpConnection, instance: Instance) -> None:
    session = await post(http, "/sessions/create", {"policy": "reject"})
    await submit(http, session_id=session)
    with pytest.raises(SessionBusyError):
        await submit(http, session_id=session)


async def test_an_interrupting_session_cancels_the_first_task(
    http: HttpConnection, instance: Instance
) -> None:
    session = await post(http, "/sessions/create", {"policy": "interrupt"})
    await submit(http, task_id="old", session_id=session)
    view = await submit(http, task_id="new", session_id=session)
    assert view["status"] == "queued"
    assert (await get(http, "/tasks/old"))["status"] == "cancelled"


async def test_a_running_task_is_told_of_its_cancellation(http: HttpConnection, instance: Instance) -> None:
    await submit(http, task_id="t")
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)
    async with await instance.queue.subscribe("llama_deploy.echo.one") as own:
        assert (await post(http, "/tasks/t/cancel"))["status"] == "running"
        (told,) = await own.receive(1)
        assert told.message.action is ActionTypes.CANCEL_TASK
    reply = await beat(instance, dispatch)
    assert [item.task_id for item in reply.cancelled] == ["t"]
    await instance.finish(dispatch, status="cancelled")
    assert (await get(http, "/tasks/t", wait=10))["status"] == "cancelled"


@pytest.mark.parametrize("lease_seconds", [0.5])
async def test_an_instance_that_falls_silent_loses_its_tasks(
    http: HttpConnection, instance: Instance
) -> None:
    await submit(http, task_id="t")
    first = await instance.next_dispatch()
    await instance.claim(first)
    await instance.stream(first, first=0, numbers=range(2))
    second = await instance.next_dispatch()
    assert second.attempt == 2
    assert not (await get(http, "/services/echo"))["instances"][0]["alive"]
    stale = instance.token
    assert (await beat(instance, first)).stale[0].task_id == "t"
    await instance.claim(second)
    fresh, instance.token = instance.token, stale
    await instance.finish(first, first=2, result="stale")
    instance.token = fresh
    await instance.finish(second, result="fresh")
    view = await get(http, "/tasks/t", wait=10)
    assert (view["result"]["result"], view["result"]["attempts"]) == ("fresh", 2)
    events = await read_stream(http, "/tasks/t/events")
    assert [event["index"] for event in events] == [0, 1, 2]


@pytest.mark.parametrize("sign_of_life", ["heartbeat", "claim"])
@pytest.mark.parametrize("lease_seconds", [0.5])
async def test_an_instance_that_falls_silent_again_loses_its_tasks_again(
    http: HttpConnection, instance: Instance, sign_of_life: str
) -> None:
    await submit(http, task_id="t")
    await instance.claim(await instance.next_dispatch())
    second = await instance.next_dispatch()
    if sign_of_life == "heartbeat":
        await beat(instance)
    await instance.claim(second)

    async def moved_on() -> bool:
        return bool((await get(http, "/tasks/t"))["attempt"] == 3)

    await eventually(moved_on)


@pytest.mark.parametrize("lease_seconds", [0.5])
async def test_a_task_that_its_instance_forgot_moves_on(http: HttpConnection, instance: Instance) -> None:
    await submit(http, task_id="t")
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)

    async def moved_on() -> bool:
        await beat(instance)
        return bool((await get(http, "/tasks/t"))["attempt"] == 2)

    await eventually(moved_on)


async def beat_past_the_lease(instance: Instance, **fields: Any) -> datetime:
    """Send heartbeats until more than a lease is over; return when the last one was dealt with."""
    begun = (await beat(instance, **fields)).at

    async def is_past() -> datetime | None:
        at: datetime = (await beat(instance, **fields)).at
        return at if at - begun > timedelta(seconds=1.2 * instance.server.config.lease_seconds) else None

    past = await eventually(is_past)
    assert past is not None
    return past


@pytest.mark.parametrize("lease_seconds", [0.5])
async def test_a_late_heartbeat_takes_nothing_that_was_claimed_since(
    http: HttpConnection, instance: Instance
) -> None:
    heard_at = (await beat(instance)).at
    await submit(http, task_id="t")
    await instance.claim(await instance.next_dispatch())
    await beat_past_the_lease(instance, heard_at=heard_at)
    assert (await get(http, "/tasks/t"))["attempt"] == 1


@pytest.mark.parametrize("lease_seconds", [0.5])
async def test_a_claim_whose_answer_is_awaited_is_not_forgotten(
    http: HttpConnection, instance: Instance
) -> None:
    await submit(http, task_id="t")
    await instance.claim(await instance.next_dispatch())
    await beat_past_the_lease(instance, claiming=[("t", 1)])
    assert (await get(http, "/tasks/t"))["attempt"] == 1


@pytest.mark.parametrize("lease_seconds", [0.5])
async def test_a_claim_that_is_repeated_begins_anew(http: HttpConnection, instance: Instance) -> None:
    await submit(http, task_id="t")
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)
    heard_at = await beat_past_the_lease(instance, claiming=[("t", 1)])
    await instance.claim(dispatch)  # the answer to the first one was lost
    await beat(instance, heard_at=heard_at)
    assert (await get(http, "/tasks/t"))["attempt"] == 1


@pytest.mark.parametrize("heard_at", ["2026-01-01T00:00:00", "yesterday"])
async def test_a_heartbeat_without_a_right_time_is_refused(http: HttpConnection, heard_at: str) -> None:
    with pytest.raises(InvalidRequestError, match="heard_at"):
        await post(http, "/instances/heartbeat", {"instance_id": "one", "heard_at": heard_at})


@pytest.mark.parametrize("heard_at", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
async def test_a_heartbeat_may_name_any_time(http: HttpConnection, instance: Instance, heard_at: str) -> None:
    await submit(http, task_id="t")
    await instance.claim(await instance.next_dispatch())
    beat = {"instance_id": "one", "heard_at": heard_at, "held": [{"task_id": "t", "attempt": 1}]}
    assert (await post(http, "/instances/heartbeat", beat))["known"]


async def test_a_task_that_ends_its_processes_is_held_back_longer_each_time(
    http: HttpConnection, instance: Instance, config: ControlPlaneConfig
) -> None:
    await submit(http, task_id="t", max_attempts=9)
    pauses = []
    for number in range(3):
        assert (await instance.claim(await instance.next_dispatch())).granted
        await post(http, "/instances/death", {"instances": ["one"], "reason": "was killed"})
        lost_at = time.monotonic()
        service = ServiceDefinition(service_name="echo", instance_id="one")
        await instance.server.plane.services.register(service)
        if number == 1:  # from now on it is a suspect
            instance.work = await instance.queue.subscribe("llama_deploy.echo._suspects")
        async with asyncio.timeout(10):
            (delivery,) = await instance.work.receive(1)
        pauses.append(time.monotonic() - lost_at)
        await delivery.nack()
    first = config.retry_backoff_seconds
    assert pauses[0] < first / 2 < first * 0.9 < pauses[1] < first * 1.8 < pauses[2] < first * 3


async def test_an_outcome_that_comes_twice_is_no_matter(
    http: HttpConnection, instance: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    await submit(http, task_id="t")
    dispatch = await instance.run_one()
    await get(http, "/tasks/t", wait=10)
    await instance.finish(dispatch)
    await instance.finish(dispatch, result="another")
    await eventually(lambda: "rejected" in caplog.text)
    assert caplog.text.count("rejected") == 1
    assert (await get(http, "/tasks/t"))["result"]["result"] == "done"


@pytest.mark.parametrize("redispatch_seconds", [0.5])
async def test_an_unclaimed_message_is_repeated(http: HttpConnection, instance: Instance) -> None:
    await submit(http, task_id="t")
    first = await instance.next_dispatch()
    again = await instance.next_dispatch()
    assert again == first


async def test_an_attempt_that_is_handed_back_does_not_count_as_a_loss(
    http: HttpConnection, instance: Instance
) -> None:
    await submit(http, task_id="t", max_attempts=1)
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)
    request = ReleaseRequest(task_id="t", attempt=1, token=instance.token)
    replies = await instance.server.plane.attempts.release([request, request])
    assert [reply.outcome for reply in replies] == ["released", "stale"]
    assert (await instance.next_dispatch()).attempt == 2


async def test_events_reach_the_instance_and_the_one_after_it(
    http: HttpConnection, instance: Instance
) -> None:
    await submit(http, task_id="t")
    event = {"event_obj_str": json.dumps({"qualified_name": "app.Answer", "value": {"text": "yes"}})}
    await post(http, "/tasks/t/events", event)
    dispatch = await instance.next_dispatch()
    reply = await instance.claim(dispatch)
    assert [entry.seq for entry in reply.inbox] == [1]
    async with await instance.queue.subscribe("llama_deploy.echo.one") as own:
        await post(http, "/tasks/t/events", event)
        (told,) = await own.receive(1)
        assert (told.message.action, told.message.data["seq"]) == (ActionTypes.SEND_EVENT, 2)
    assert [entry.seq for entry in (await beat(instance, dispatch, inbox_seq=1)).inbox] == [2]
    await instance.finish(dispatch)
    await get(http, "/tasks/t", wait=10)
    with pytest.raises(TaskFinishedError):
        await post(http, "/tasks/t/events", event)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("not json", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"value": {}}', "names no class"),
        ('{"qualified_name": "os.system", "value": {}}', "does not accept events of the class 'os.system'"),
    ],
)
async def test_a_malformed_event_is_refused(
    http: HttpConnection, server: ControlPlaneServer, instance: Instance, text: str, match: str
) -> None:
    await server.plane.services.register(
        ServiceDefinition(service_name="echo", instance_id="one", accepted_events=["app.Answer"])
    )
    await submit(http, task_id="t")
    with pytest.raises(InvalidRequestError, match=match):
        await post(http, "/tasks/t/events", {"event_obj_str": text})


async def test_state_merges_and_compares(http: HttpConnection) -> None:
    session = await post(http, "/sessions/create")
    path = f"/sessions/{session}/state"
    assert await get(http, path) == {}
    assert await post(http, path, {"a": 1}) == {"a": 1}
    assert await post(http, path, {"b": 2}) == {"a": 1, "b": 2}
    await http.request(HttpRequest("PUT", path, json={"c": 3}, headers={"If-Match": '"2"'}))
    with pytest.raises(StateConflictError) as caught:
        await http.request(HttpRequest("PUT", path, json={"d": 4}, headers={"If-Match": '"2"'}))
    assert (caught.value.expected, caught.value.actual) == (2, 3)
    assert await get(http, path) == {"c": 3}


async def test_concurrent_merges_lose_nothing(http: HttpConnection) -> None:
    session = await post(http, "/sessions/create")
    path = f"/sessions/{session}/state"
    await asyncio.gather(*(post(http, path, {f"k{n}": n}) for n in range(50)))
    assert await get(http, path) == {f"k{n}": n for n in range(50)}


async def test_keys_of_the_services_are_neither_shown_nor_written(
    http: HttpConnection, instance: Instance
) -> None:
    session = await post(http, "/sessions/create")
    path = f"/sessions/{session}/state"
    with pytest.raises(InvalidRequestError, match="reserved for services"):
        await post(http, path, {"__workflow_state__": "gASVpickle"})
    await submit(http, session_id=session, task_id="t")
    await instance.run_one(session_state={"__workflow_state__": 1, "shown": 2})
    await get(http, "/tasks/t", wait=10)
    assert await get(http, path) == {"shown": 2}


async def test_a_deleted_session_takes_its_tasks_and_readers_along(
    http: HttpConnection, instance: Instance
) -> None:
    session = await post(http, "/sessions/create")
    await submit(http, task_id="t", session_id=session)
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)
    await instance.stream(dispatch, first=0, numbers=range(1))
    async with asyncio.timeout(10), http.stream(HttpRequest("GET", "/tasks/t/events")) as lines:
        assert json.loads(await anext(lines))["data"] == {"n": 0}
        with pytest.raises(SessionBusyError, match=r"1 open task; wait until .*cancel=true") as refused:
            await post(http, f"/sessions/{session}/delete")
        assert refused.value.facts() == {"session_id": session, "open_tasks": 1}
        assert (await get(http, "/tasks/t"))["status"] == "running"
        await post(http, f"/sessions/{session}/delete", cancel="true")
        assert [line async for line in lines if line] == []
    with pytest.raises(TaskNotFoundError):
        await get(http, "/tasks/t")
    with pytest.raises(SessionNotFoundError):
        await get(http, f"/sessions/{session}")


async def test_unknown_things_are_named(http: HttpConnection, instance: Instance) -> None:
    with pytest.raises(ServiceNotFoundError, match="nobody") as caught:
        await post(http, "/tasks", {"service_name": "nobody"})
    assert caught.value.service_name == "nobody"
    with pytest.raises(SessionNotFoundError, match="nowhere"):
        await submit(http, session_id="nowhere")
    with pytest.raises(TaskNotFoundError, match="nothing"):
        await get(http, "/tasks/nothing")
    with pytest.raises(TaskNotFoundError):
        await get(http, "/tasks/nothing/events")


@pytest.mark.parametrize("text", ["not json", "[1]", "7", '"text"', "null"])
async def test_run_arguments_must_be_a_json_object(
    http: HttpConnection, instance: Instance, text: str
) -> None:
    session = await post(http, "/sessions/create")
    with pytest.raises(InvalidRequestError, match="input"):
        await post(http, f"/sessions/{session}/tasks", {"input": text, "agent_id": "echo"})


async def test_the_0_6_routes_of_tasks(http: HttpConnection, instance: Instance) -> None:
    session = await post(http, "/sessions/create")
    task = {"input": '{"x": 1}', "agent_id": "echo", "task_id": "t"}
    assert await post(http, f"/sessions/{session}/tasks", task) == "t"
    assert await get(http, f"/sessions/{session}/tasks/t/result") is None
    assert (await get(http, f"/sessions/{session}/current_task"))["task_id"] == "t"
    assert [item["task_id"] for item in await get(http, f"/sessions/{session}/tasks")] == ["t"]
    await instance.run_one()
    result = await get(http, f"/sessions/{session}/tasks/t/result", wait=10)
    assert (result["result"], result["status"]) == ("done", "succeeded")
    definition = await get(http, f"/sessions/{session}")
    assert definition["task_ids"] == ["t"]
    assert session in await get(http, "/sessions")


async def test_an_oversized_body_is_refused(http: HttpConnection, instance: Instance) -> None:
    with pytest.raises(PayloadTooLargeError, match="4194304") as caught:
        await submit(http, arguments={"x": "y" * 5_000_000})
    assert caught.value.limit_bytes == 4_194_304


@pytest.mark.parametrize(
    "body", [b"not json", b"[]", b'{"service_name": 3}', b'{"service_name": "echo", "task_id": 1}']
)
async def test_a_malformed_request_is_a_problem(http: HttpConnection, body: bytes) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{http.base_url}/tasks", data=body, headers={"Content-Type": "application/json"}
        ) as response,
    ):
        assert response.status == 422
        assert response.content_type == "application/problem+json"
        problem = await response.json()
    assert problem["type"] == "urn:llama-deploy:problem:invalid_request"


async def test_everything_is_there_after_a_restart(
    queue: LocalMessageQueue, config: ControlPlaneConfig
) -> None:
    async with ControlPlaneServer(queue, config=config) as server:
        await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
        first = HttpConnection(server.config.url)
        await submit(first, task_id="t")
        await first.close()
    async with (
        await LocalMessageQueue.start() as emptied,
        ControlPlaneServer(emptied, config=config) as server,
    ):
        async with await emptied.subscribe("llama_deploy.echo") as work:
            await Instance(server, emptied, work, "one").run_one()
            view = await server.plane.tasks.get("t", wait=10)
            assert view.status == "succeeded"
        assert set(await server.plane.services.all()) == {"echo"}


async def test_a_second_control_plane_on_the_store_is_refused(
    server: ControlPlaneServer, queue: LocalMessageQueue, config: ControlPlaneConfig
) -> None:
    with pytest.raises(StoreLockedError, match=r"state\.db"):
        await ControlPlaneServer(queue, config=config).start()


async def test_a_message_that_is_no_report_does_not_stop_the_others(
    http: HttpConnection, instance: Instance
) -> None:
    await submit(http, task_id="t")
    await instance.queue.publish(QueueMessage(action=ActionTypes.COMPLETED_TASK, data={"x": 1}), CONTROL)
    await instance.queue.publish(QueueMessage(), CONTROL)
    await instance.run_one()
    assert (await get(http, "/tasks/t", wait=10))["status"] == "succeeded"


async def test_the_queue_is_told_without_credentials(http: HttpConnection) -> None:
    assert (await get(http, "/queue_config"))["type"] == "simple"
    assert (await get(http, "/health"))["status"] == "ok"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org", ""])  # noqa: S104
async def test_other_machines_are_let_in_only_by_name(
    queue: LocalMessageQueue, config: ControlPlaneConfig, host: str
) -> None:
    open_to_all = config.model_copy(update={"host": host})
    with pytest.raises(ConfigError, match="allow_remote"):
        await ControlPlaneServer(queue, config=open_to_all).start()


async def test_an_address_that_is_allowed_by_name_is_bound(
    queue: LocalMessageQueue, config: ControlPlaneConfig
) -> None:
    allowed = config.model_copy(update={"host": "0.0.0.0", "allow_remote": True})  # noqa: S104
    async with ControlPlaneServer(queue, config=allowed) as server:
        assert (await server.health())["status"] == "ok"


async def test_an_instance_that_is_not_registered_claims_nothing(
    http: HttpConnection, server: ControlPlaneServer, instance: Instance
) -> None:
    await submit(http)
    dispatch = await instance.next_dispatch()
    refused = await Instance(server, instance.queue, instance.work, "stranger").claim(dispatch)
    assert not refused.granted
    assert refused.retriable
    assert (await instance.claim(dispatch)).granted


async def test_an_instance_that_leaves_keeps_what_it_has_reported(
    http: HttpConnection, server: ControlPlaneServer, instance: Instance
) -> None:
    await submit(http, task_id="t")
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)
    await server.plane.services.deregister("echo", instance_id="one")
    await instance.finish(dispatch)
    view = await get(http, "/tasks/t", wait=10)
    assert (view["status"], view["attempt"]) == ("succeeded", 1)


@pytest.mark.parametrize(
    "text",
    [r'{"a": "\ud800"}', '{"a": NaN}', '{"a": -Infinity}', DEEP, TOO_DEEP_FOR_PYTHON],
)
async def test_what_cannot_be_stored_as_json_is_refused_and_harms_nobody(
    http: HttpConnection, text: str
) -> None:
    session = await post(http, "/sessions/create")
    for method, path in [("POST", f"/sessions/{session}/state"), ("POST", "/tasks")]:
        body = text if path != "/tasks" else f'{{"service_name": "echo", "arguments": {text}}}'
        request = HttpRequest(
            method, path, content=body.encode(), headers={"Content-Type": "application/json"}
        )
        status, _ = await http.send(request)
        assert status in (400, 422)
    assert await get(http, f"/sessions/{session}/state") == {}
    assert session in await get(http, "/sessions")


async def test_numbers_beyond_the_database_are_refused(http: HttpConnection, instance: Instance) -> None:
    await submit(http, task_id="t")
    with pytest.raises(InvalidRequestError):
        await get(http, "/tasks/t/events", after=10**30)
    with pytest.raises(InvalidRequestError):
        await post(http, "/services/register", {"service_name": "x", "instance_id": "i", "port": 10**30})
    session = await post(http, "/sessions/create")
    path = f"/sessions/{session}/state"
    with pytest.raises(InvalidRequestError):
        await http.request(HttpRequest("PUT", path, json={}, headers={"If-Match": "9" * 5000}))
    with pytest.raises(InvalidRequestError):
        await post(http, f"/sessions/{session}/tasks", {"input": "{}", "agent_id": "x" * 300})


async def test_a_task_that_the_queue_refuses_for_good_fails_and_frees_its_session(
    config: ControlPlaneConfig,
) -> None:
    async with (
        SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0, max_body_bytes=500)) as queue_server,
        await SimpleMessageQueue.connect(queue_server.config) as queue,
        ControlPlaneServer(queue, config=config) as server,
    ):
        await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
        session = await server.plane.sessions.create(SessionOptions())
        large = TaskSubmission(service_name="echo", task_id="t" * 200, session_id=session)
        small = TaskSubmission(service_name="echo", task_id="t", session_id=session)
        refused = await server.plane.tasks.submit(large, wait=10)
        assert refused.result is not None
        assert refused.result.error is not None
        assert refused.result.error.type == "llama_deploy.errors.PayloadTooLargeError"
        assert (await server.plane.tasks.submit(small)).status == "queued"


async def test_messages_wait_out_a_full_queue(
    config: ControlPlaneConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        await LocalMessageQueue.start(SimpleMessageQueueConfig(max_messages_per_topic=5)) as queue,
        ControlPlaneServer(queue, config=config) as server,
    ):
        await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
        ids = [
            (await server.plane.tasks.submit(TaskSubmission(service_name="echo"))).task_id for _ in range(20)
        ]
        assert "does not accept messages" in caplog.text
        async with await queue.subscribe("llama_deploy.echo") as work:
            instance = Instance(server, queue, work, "one")
            done: set[str] = set()
            while len(done) < 20:
                dispatch = await instance.next_dispatch()
                if (await instance.claim(dispatch)).granted:
                    await instance.finish(dispatch)
                    done.add(dispatch.task_id)
        assert done == set(ids)


async def test_a_deregistered_service_gets_its_running_tasks_again(
    http: HttpConnection, server: ControlPlaneServer, instance: Instance
) -> None:
    await submit(http, task_id="t", max_attempts=1)
    await instance.claim(await instance.next_dispatch())
    await post(http, "/services/deregister", service_name="echo")
    with pytest.raises(ServiceNotFoundError):
        await submit(http)
    assert (await get(http, "/tasks/t"))["status"] == "queued"
    await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
    assert (await instance.run_one()).attempt == 2
    assert (await get(http, "/tasks/t", wait=10))["status"] == "succeeded"


async def test_an_attempt_whose_events_the_queue_has_lost_is_tried_again(
    http: HttpConnection, instance: Instance
) -> None:
    await submit(http, task_id="t", max_attempts=1)
    first = await instance.next_dispatch()
    await instance.claim(first)
    await instance.finish(first, first=5)
    async with asyncio.timeout(30):
        (delivery,) = await instance.work.receive(1)
    second = TaskDispatch.model_validate(delivery.message.data)
    assert second.attempt == 2
    await instance.claim(second)
    await instance.finish(second)
    assert (await get(http, "/tasks/t", wait=10))["status"] == "succeeded"


@pytest.mark.parametrize("text", ['{"x": NaN}', '{"x": 1e999}', r'{"x": "\ud800"}', DEEP, "[" * 100_000])
async def test_odd_run_arguments_of_the_0_6_form_are_refused(
    http: HttpConnection, instance: Instance, text: str
) -> None:
    session = await post(http, "/sessions/create")
    with pytest.raises(InvalidRequestError):
        await post(http, f"/sessions/{session}/tasks", {"input": text, "agent_id": "echo"})


async def test_state_that_cannot_be_kept_fails_its_task_only(
    http: HttpConnection, instance: Instance
) -> None:
    deep: list[Any] = []
    for _ in range(160):
        deep = [deep]
    await submit(http, task_id="t")
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)
    await instance.finish(dispatch, session_state={"x": deep})
    view = await get(http, "/tasks/t", wait=10)
    assert view["status"] == "failed"
    assert view["result"]["error"]["type"] == "llama_deploy.errors.SerializationError"


@pytest.mark.parametrize("lease_seconds", [0.5])
async def test_a_store_that_fails_for_a_while_costs_no_attempt(
    http: HttpConnection, instance: Instance, lease_seconds: float
) -> None:
    async def is_alive() -> bool:
        return bool((await get(http, "/services/echo"))["instances"][0]["alive"])

    await submit(http, task_id="t")
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)
    loop = asyncio.get_running_loop()
    until = loop.time() + 2 * lease_seconds
    with no_disk_writes():
        while loop.time() < until:
            with pytest.raises(UnavailableError):
                await beat(instance, dispatch)
            await asyncio.sleep(lease_seconds / 3)  # the interval of heartbeats
    await eventually(is_alive)
    await beat(instance, dispatch)
    await instance.finish(dispatch)
    view = await get(http, "/tasks/t", wait=10)
    assert (view["status"], view["attempt"]) == ("succeeded", 1)


@pytest.mark.parametrize("field", ["slots", "port", "instances_total", "instances_alive"])
@pytest.mark.parametrize("value", [2**70, True])
async def test_numbers_of_an_instance_that_cannot_be_stored_are_refused(
    http: HttpConnection, field: str, value: int
) -> None:
    definition = {"service_name": "echo", "instance_id": "i1", field: value}
    with pytest.raises(InvalidRequestError, match=field):
        await http.request(HttpRequest("POST", "/services/register", json=definition))


@pytest.mark.parametrize(
    ("path", "field"),
    [("/sessions?order=newest&tag=%1F", "tag"), (f"/tasks/t/events?after={2**63 - 1}", "after")],
)
async def test_values_of_queries_that_no_row_can_have_are_refused(
    http: HttpConnection, path: str, field: str
) -> None:
    with pytest.raises(InvalidRequestError, match=field):
        await http.request(HttpRequest("GET", path))
