"""The death of a process, reported by its supervisor: its tasks move on without waiting for the lease."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from llama_deploy.control_plane import ControlPlaneServer
from llama_deploy.errors import InvalidRequestError, ProtocolVersionError
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.messages import QueueMessage
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import ServiceDefinition, TaskStatus, TaskView
from llama_deploy.types.instance_protocol import (
    MAX_INSTANCES_OF_PROCESS,
    PROTOCOL_HEADER,
    ClaimRequest,
    TaskDispatch,
)
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


async def record(instance: Instance, task_id: str) -> TaskRecord:
    return (await instance.server.plane._store.read(lambda tx: tx.tasks.load([task_id])))[task_id]


async def losses(instance: Instance, task_id: str) -> int:
    return (await record(instance, task_id)).losses


async def test_its_tasks_move_on_at_once_and_none_of_several_is_charged(
    http: HttpConnection, instance: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    await running(http, instance, "t1")
    await running(http, instance, "t2")
    await report_death(http, "one")
    for task_id in ("t1", "t2"):
        assert (await view(instance, task_id)).status is TaskStatus.QUEUED
        task = await record(instance, task_id)
        assert (task.losses, task.deaths) == (0, 1)
    assert {(await instance.next_dispatch()).attempt for _ in range(2)} == {2}
    lines = [record.getMessage() for record in caplog.records if "lost its instance" in record.getMessage()]
    assert len(lines) == 2
    assert "task t1 has lost its instance one (not charged: it was not alone in its process)" in lines[0]
    assert "because the process was killed by SIGKILL; it is queued now, attempt 2" in lines[0]


async def test_a_task_that_was_alone_is_charged(
    http: HttpConnection, instance: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    await running(http, instance, "t1")
    await report_death(http, "one")
    assert await losses(instance, "t1") == 1
    assert "task t1 has lost its instance one (charge 1 of at most" in caplog.text


async def test_the_instances_of_a_process_are_judged_together(
    http: HttpConnection, instance: Instance, server: ControlPlaneServer
) -> None:
    for service, name in (("echo", "one"), ("other", "two")):
        await server.plane.services.register(
            ServiceDefinition(service_name=service, instance_id=name, process_id="p")
        )
    await running(http, instance, "t1")
    await submit(http, task_id="t2", service_name="other")
    (reply,) = await server.plane.attempts.claim([ClaimRequest(task_id="t2", attempt=1, instance_id="two")])
    assert reply.granted
    await report_death(http, "one")  # the other one had not sent a heartbeat yet
    for task_id in ("t1", "t2"):
        task = await record(instance, task_id)
        assert (task.status, task.losses, task.deaths) == (TaskStatus.QUEUED, 0, 1)
    assert (await server.plane.services.get("other")).instances == []


async def test_runs_that_only_waited_at_the_last_heartbeat_do_not_count(
    http: HttpConnection, instance: Instance
) -> None:
    dispatches = [await running(http, instance, task_id) for task_id in ("works", "waits", "is woken")]
    held = [{"task_id": each.task_id, "attempt": 1, "waits": each.task_id != "works"} for each in dispatches]
    await post(http, "/instances/heartbeat", {"instance_id": "one", "held": held})
    event = {"event_obj_str": json.dumps({"qualified_name": "app.Answer", "value": {}})}
    await post(http, "/tasks/is woken/events", event)
    await report_death(http, "one")
    for task_id, count in (("works", 1), ("waits", 0), ("is woken", 1)):
        task = await record(instance, task_id)
        assert (task.losses, task.deaths) == (0, count)


async def test_a_suspect_goes_to_a_topic_of_its_own_as_often_as_it_is_published(
    http: HttpConnection, instance: Instance, queue: LocalMessageQueue, caplog: pytest.LogCaptureFixture
) -> None:
    for attempt in (1, 2):
        for task_id in ("t1", "t2") if attempt == 1 else ():
            await submit(http, task_id=task_id)
        for dispatch in [await instance.next_dispatch() for _ in range(2)]:
            assert (await instance.claim(dispatch)).granted
        await report_death(http, "one")
        await instance.server.plane.services.register(
            ServiceDefinition(service_name="echo", instance_id="one")
        )
    assert "attempt 3, to run alone in a process: 2 of its processes have died" in caplog.text
    async with await queue.subscribe("llama_deploy.echo._suspects") as suspects:

        async def offered() -> set[tuple[str, int]]:
            found: list[TaskDispatch] = []
            async with asyncio.timeout(10):
                while len(found) < 2:
                    for delivery in await suspects.receive(2):
                        found.append(TaskDispatch.model_validate(delivery.message.data))
                        await delivery.ack()
            return {(each.task_id, each.attempt) for each in found}

        assert await offered() == {("t1", 3), ("t2", 3)}
        await instance.server.plane._sweeps.dispatcher.dispatch_all()
        assert await offered() == {("t1", 3), ("t2", 3)}


async def test_few_instances_are_asked_to_run_a_suspect_alone(
    http: HttpConnection, instance: Instance, server: ControlPlaneServer
) -> None:
    names = [f"i{n}" for n in range(20)]
    for name in names:
        await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id=name))

    async def asked(*, alone: str | None = None) -> int:
        beats = [{"instance_id": name, "alone": name == alone} for name in names]
        replies = [await post(http, "/instances/heartbeat", each) for each in beats]
        return sum(reply["suspects"] > 0 for reply in replies)

    assert await asked() == 0
    await running(http, instance, "t1")
    await running(http, instance, "t2")
    await report_death(http, "one")
    await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
    for _ in range(2):
        assert (await instance.claim(await instance.next_dispatch())).granted
    await report_death(http, "one")
    server.plane.services.hints.forget()
    assert await asked() == 2
    await asked(alone="i1")
    server.plane.services.hints.forget()
    assert await asked(alone="i1") == 1


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
    seconds = []
    for _ in range(5):
        begun = time.monotonic()
        await report_death(http, "one")
        seconds.append(time.monotonic() - begun)
    assert min(seconds) < 0.1  # on a busy machine not each


async def test_a_queue_that_is_away_does_not_hold_it_up(
    http: HttpConnection, instance: Instance, queue: LocalMessageQueue
) -> None:
    await running(http, instance, "t1")
    await queue.close()
    begun = time.monotonic()
    await report_death(http, "one")
    assert time.monotonic() - begun < 10  # the queue does not come back
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
