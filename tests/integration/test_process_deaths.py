"""The death of a process, reported by its supervisor: its tasks move on without waiting for the lease."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from llama_deploy.control_plane import ControlPlaneServer
from llama_deploy.errors import InvalidRequestError, ProtocolVersionError
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.messages import QueueMessage
from llama_deploy.types import ServiceDefinition, TaskStatus, TaskView
from llama_deploy.types.instance_protocol import MAX_INSTANCES_OF_PROCESS, PROTOCOL_HEADER, TaskDispatch
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.conftest import Instance, beat, post, submit

BACKLOG = 400
"""More reports than the consumer takes at once."""


async def report_death(http: HttpConnection, *instances: str, **fields: Any) -> None:
    await post(
        http, "/instances/death", {"instances": instances, "reason": "was killed by SIGKILL", **fields}
    )


async def running(http: HttpConnection, instance: Instance, task_id: str) -> TaskDispatch:
    await submit(http, task_id=task_id)
    dispatch = await instance.next_dispatch()
    assert (await instance.claim(dispatch)).granted
    return dispatch


async def view(instance: Instance, task_id: str) -> TaskView:
    return await instance.server.plane.tasks.get(task_id)


async def losses(instance: Instance, task_id: str) -> int:
    tasks = await instance.server.plane._store.read(lambda tx: tx.tasks.load([task_id]))
    return tasks[task_id].losses


async def test_its_tasks_move_on_at_once(
    http: HttpConnection, instance: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    await running(http, instance, "t1")
    await running(http, instance, "t2")
    await report_death(http, "one")
    for task_id in ("t1", "t2"):
        assert (await view(instance, task_id)).status is TaskStatus.QUEUED
        assert await losses(instance, task_id) == 1
    assert {(await instance.next_dispatch()).attempt for _ in range(2)} == {2}
    lines = [record.getMessage() for record in caplog.records if "lost its instance" in record.getMessage()]
    assert len(lines) == 2
    assert "task t1 has lost its instance one (loss 1 of at most" in lines[0]
    assert "because the process was killed by SIGKILL; it is queued now, attempt 2" in lines[0]


async def test_its_instances_do_not_come_back(http: HttpConnection, instance: Instance) -> None:
    dispatch = await running(http, instance, "t1")
    await report_death(http, "one")
    assert (await instance.server.plane.services.get("echo")).instances == []
    reply = await beat(instance, dispatch)
    assert not reply.known
    assert [held.task_id for held in reply.stale] == ["t1"]
    # A claim that was on its way when the process died is not granted.
    refused = await instance.claim(await instance.next_dispatch())
    assert (refused.granted, refused.retriable) == (False, True)


async def test_only_culprits_are_charged(http: HttpConnection, instance: Instance) -> None:
    await running(http, instance, "guilty")
    await running(http, instance, "innocent")
    await report_death(http, "one", culprits=["guilty"])
    for task_id, charged in (("guilty", 1), ("innocent", 0)):
        assert (await view(instance, task_id)).status is TaskStatus.QUEUED
        assert await losses(instance, task_id) == charged


async def test_nobody_is_charged_for_a_culprit_that_has_ended(
    http: HttpConnection, instance: Instance
) -> None:
    await running(http, instance, "innocent")
    await report_death(http, "one", culprits=["gone"])
    assert await losses(instance, "innocent") == 0


async def test_tasks_of_other_processes_stay(
    http: HttpConnection, instance: Instance, server: ControlPlaneServer
) -> None:
    await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="two"))
    await running(http, instance, "t1")
    await report_death(http, "two")
    assert (await view(instance, "t1")).status is TaskStatus.RUNNING


async def test_reporting_it_again_changes_nothing(http: HttpConnection, instance: Instance) -> None:
    await running(http, instance, "t1")
    await asyncio.gather(*(report_death(http, "one", "never registered") for _ in range(3)))
    await report_death(http, "one")
    assert await losses(instance, "t1") == 1
    assert (await instance.next_dispatch()).attempt == 2


async def test_a_report_that_is_in_the_queue_is_taken_first(http: HttpConnection, instance: Instance) -> None:
    slow = await running(http, instance, "slow")
    for n in range(BACKLOG):
        await instance.stream(slow, first=n, numbers=range(n, n + 1))
    finished = await running(http, instance, "finished")
    await instance.finish(finished)
    await report_death(http, "one")
    assert (await view(instance, "finished")).status is TaskStatus.SUCCEEDED
    assert (await view(instance, "slow")).attempt == 2


async def test_it_takes_a_few_milliseconds_if_the_consumer_is_idle(
    http: HttpConnection, instance: Instance
) -> None:
    await running(http, instance, "t1")
    begun = time.monotonic()
    await report_death(http, "one")
    assert time.monotonic() - begun < 0.1


async def test_a_queue_that_is_away_does_not_hold_it_up(
    http: HttpConnection, instance: Instance, queue: LocalMessageQueue
) -> None:
    await running(http, instance, "t1")
    await queue.close()
    begun = time.monotonic()
    await report_death(http, "one")
    assert time.monotonic() - begun < 1
    assert (await view(instance, "t1")).status is TaskStatus.QUEUED


async def test_a_mark_of_another_control_plane_is_no_report(
    http: HttpConnection, instance: Instance, queue: LocalMessageQueue, caplog: pytest.LogCaptureFixture
) -> None:
    topic = "llama_deploy.control_plane"
    await queue.publish(QueueMessage(type="control_plane", data={"report_mark": "of another"}), topic)
    await running(http, instance, "t1")
    await report_death(http, "one")
    assert (await view(instance, "t1")).status is TaskStatus.QUEUED
    assert "rejected" not in caplog.text


async def test_an_instance_of_another_protocol_is_refused(http: HttpConnection, instance: Instance) -> None:
    await running(http, instance, "t1")
    body = {"instances": ["one"], "reason": "was killed"}
    with pytest.raises(ProtocolVersionError):
        await http.request(
            HttpRequest("POST", "/instances/death", json=body, headers={PROTOCOL_HEADER: "999"})
        )
    assert (await view(instance, "t1")).status is TaskStatus.RUNNING


@pytest.mark.parametrize(
    "fields",
    [
        {"instances": []},
        {"instances": ["one"] * (MAX_INSTANCES_OF_PROCESS + 1)},
        {"reason": ""},
        {"reason": "x" * 501},
        {"reason": "was killed\nforged line"},
        {"culprits": ["t"] * (MAX_INSTANCES_OF_PROCESS + 1)},
    ],
)
async def test_a_malformed_report_is_refused(http: HttpConnection, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        await post(http, "/instances/death", {"instances": ["one"], "reason": "was killed", **fields})


async def test_as_many_instances_as_may_be_named(http: HttpConnection, instance: Instance) -> None:
    await running(http, instance, "t1")
    others = [f"instance {n}" for n in range(MAX_INSTANCES_OF_PROCESS - 1)]
    await report_death(http, *others, "one")
    assert (await view(instance, "t1")).status is TaskStatus.QUEUED
