"""Uploaded reports are stored by the rules of those from the queue: in order, once, from the owner only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from llama_deploy.control_plane.requests.attempts.report_barrier import ReportBarrier
from llama_deploy.control_plane.requests.attempts.report_consumer import Reports
from llama_deploy.control_plane.requests.attempts.report_uploads import ReportUploads
from llama_deploy.errors import EventsMissingError, MessageDecodeError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.gateway import HttpGateway
from llama_deploy.testing.conditions import eventually
from llama_deploy.types.instance_protocol import AttemptEvents, AttemptOutcome, TaskDispatch
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.conftest import Instance, get, read_stream, submit


@pytest.fixture
async def gateway(instance: Instance) -> AsyncIterator[HttpGateway]:
    gateway = HttpGateway(instance.server.config.url)
    yield gateway
    await gateway.close()


async def claimed(http: HttpConnection, instance: Instance) -> TaskDispatch:
    await submit(http)
    dispatch = await instance.next_dispatch()
    assert (await instance.claim(dispatch)).granted
    return dispatch


def events(instance: Instance, dispatch: TaskDispatch, first: int, numbers: range) -> QueueMessage:
    data = AttemptEvents(**instance.events(dispatch, first, numbers))
    return QueueMessage(action=ActionTypes.TASK_STREAM, data=data.model_dump(mode="json"))


def outcome(instance: Instance, dispatch: TaskDispatch, first: int, **fields: Any) -> QueueMessage:
    data = AttemptOutcome(
        **{**instance.events(dispatch, first, range(0)), "status": "succeeded", "value": "done", **fields}
    )
    return QueueMessage(action=ActionTypes.COMPLETED_TASK, data=data.model_dump(mode="json"))


async def numbers_of(http: HttpConnection, task_id: str) -> list[Any]:
    return [event["data"].get("n") for event in await read_stream(http, f"/tasks/{task_id}/events")]


async def test_uploads_and_messages_make_one_stream(
    http: HttpConnection, instance: Instance, gateway: HttpGateway
) -> None:
    dispatch = await claimed(http, instance)
    await instance.stream(dispatch, first=0, numbers=range(2))

    async def uploaded() -> bool:
        try:
            await gateway.report(events(instance, dispatch, 2, range(2, 4)))
        except EventsMissingError:
            return False
        return True

    await eventually(uploaded)
    await gateway.report(events(instance, dispatch, 1, range(1, 5)))
    for _ in range(2):  # the answer to the first was lost
        await gateway.report(outcome(instance, dispatch, 5))
    assert await numbers_of(http, dispatch.task_id) == [0, 1, 2, 3, 4, None]
    assert (await get(http, f"/tasks/{dispatch.task_id}"))["result"]["result"] == "done"


async def test_what_another_attempt_uploads_changes_nothing(
    http: HttpConnection, instance: Instance, gateway: HttpGateway
) -> None:
    dispatch = await claimed(http, instance)
    await gateway.report(outcome(instance, dispatch, 0, token="guessed"))
    assert (await get(http, f"/tasks/{dispatch.task_id}"))["status"] == "running"


async def test_an_upload_that_waits_sends_probes_and_never_gives_the_attempt_up(
    http: HttpConnection, instance: Instance
) -> None:
    dispatch = await claimed(http, instance)
    attempts = instance.server.plane.attempts
    probes: list[QueueMessage] = []
    uploads = ReportUploads(attempts, probe_after=0.1, publish=probes.append)
    upload = events(instance, dispatch, 3, range(3, 4))

    async def probed() -> bool:
        with pytest.raises(EventsMissingError):
            await uploads.take(upload)
        return len(probes) >= 2

    await eventually(probed)
    view = await get(http, f"/tasks/{dispatch.task_id}")
    assert (view["status"], view["attempt"]) == ("running", 1)
    # The queue delivers again: first what was missing, then the probes, which store nothing.
    await attempts.take([events(instance, dispatch, 0, range(3))])
    assert await attempts.take(probes) == [None] * len(probes)
    await uploads.take(upload)
    await instance.finish(dispatch, first=4)
    assert await numbers_of(http, dispatch.task_id) == [0, 1, 2, 3, None]


async def test_reports_that_the_queue_has_lost_end_the_attempt(
    http: HttpConnection, instance: Instance
) -> None:
    dispatch = await claimed(http, instance)
    plane = instance.server.plane
    topic = "probes"
    async with await instance.server.message_queue.subscribe(topic) as subscription:
        relay: set[asyncio.Task[None]] = set()

        def publish(message: QueueMessage) -> None:
            relay.add(asyncio.create_task(instance.server.message_queue.publish(message, topic)))

        uploads = ReportUploads(plane.attempts, probe_after=0.1, publish=publish)
        barrier = ReportBarrier(instance.server.message_queue, topic, store=plane._store)
        consumer = Reports(subscription, plane.attempts, barrier=barrier, lost_after=0.2)
        reports = asyncio.create_task(consumer.consume())

        async def taken_back() -> bool:
            with suppress(EventsMissingError):
                await uploads.take(events(instance, dispatch, 3, range(3, 4)))
            view = await get(http, f"/tasks/{dispatch.task_id}")
            return bool(view["attempt"] == 2)

        await eventually(taken_back)
        reports.cancel()
        await asyncio.wait([reports, *relay])
    assert (await get(http, f"/tasks/{dispatch.task_id}"))["status"] == "queued"


@pytest.mark.parametrize("version", [None, True, 2, "1"])
async def test_a_report_of_another_wire_version_is_refused(
    http: HttpConnection, instance: Instance, version: object
) -> None:
    dispatch = await claimed(http, instance)
    body = {**events(instance, dispatch, 0, range(1)).to_wire(), "v": version}
    with pytest.raises(MessageDecodeError, match="wire version"):
        await http.request(HttpRequest("POST", "/attempts/report", json=body))
