"""Instances whose event loop is blocked, as their heartbeats report them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from pydantic import ValidationError

from llama_deploy.testing.conditions import eventually
from llama_deploy.types import BlockedStep, ServiceDefinition
from llama_deploy.types.instance_protocol import Heartbeat, HeartbeatReply, HeldAttempt, TaskDispatch
from llama_deploy.web.http_connection import HttpConnection
from tests.integration.conftest import Instance, beat, get, post, submit

THINKS = BlockedStep(task_id="t1", step="think", seconds=12.3, place="flow.py:7")


async def listed(http: HttpConnection) -> dict[str, Any]:
    (found,) = (await get(http, "/services/echo"))["instances"]
    return dict(found)


async def test_a_service_shows_the_load_of_its_instances(http: HttpConnection, instance: Instance) -> None:
    assert (await listed(http))["slots"] is None
    await beat(instance, slots=8, running=3)
    found = await listed(http)
    assert (found["slots"], found["running"], found["blocked"]) == (8, 3, [])


async def test_a_service_shows_what_blocks_its_instances_until_it_ends(
    http: HttpConnection, instance: Instance
) -> None:
    await beat(instance, blocked_seconds=12.3, blocked=[THINKS])
    assert (await listed(http))["blocked"] == [THINKS.model_dump()]
    await beat(instance)
    assert (await listed(http))["blocked"] == []


def test_a_blocked_step_is_told_in_words() -> None:
    assert str(THINKS) == "blocked for 12 s by step 'think' of task t1 at flow.py:7"
    assert str(THINKS.model_copy(update={"task_id": None})) == "blocked for 12 s by step 'think' at flow.py:7"
    assert str(BlockedStep(seconds=2, place="flow.py:7")) == "blocked for 2 s by code at flow.py:7"


@pytest.mark.parametrize("fields", [{"task_id": "t" * 501}, {"step": "s" * 501}, {"place": "p" * 501}])
def test_its_texts_are_bounded(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        BlockedStep(seconds=1, **fields)
    with pytest.raises(ValidationError):
        Heartbeat(instance_id="one", blocked=[THINKS] * 101)


async def running(http: HttpConnection, instance: Instance, task_id: str = "t1") -> TaskDispatch:
    await submit(http, task_id=task_id)
    dispatch = await instance.next_dispatch()
    assert (await instance.claim(dispatch)).granted
    return dispatch


async def beat_holding(instance: Instance, dispatch: TaskDispatch, **fields: Any) -> HeartbeatReply:
    held = HeldAttempt(
        task_id=dispatch.task_id, attempt=dispatch.attempt, running_seconds=2.5, timeout=fields.pop("timeout")
    )
    return await instance.server.plane.services.heartbeat(
        Heartbeat(instance_id=instance.name, held=[held], **fields)
    )


async def test_a_time_limit_is_enforced_while_the_instance_is_blocked(
    http: HttpConnection, instance: Instance
) -> None:
    dispatch = await running(http, instance)
    session_id = (await get(http, "/tasks/t1"))["session_id"]
    await submit(http, task_id="following", session_id=session_id)
    reply = await beat_holding(instance, dispatch, timeout=2.0, blocked_seconds=1.5)
    assert [held.task_id for held in reply.stale] == ["t1"]
    view = await get(http, "/tasks/t1")
    assert view["status"] == "timed_out"
    assert view["result"]["error"]["type"] == "workflows.errors.WorkflowTimeoutError"
    assert (await instance.next_dispatch()).task_id == "following"
    # What the instance reports when it is free again is refused.
    await instance.finish(dispatch)
    await instance.server.plane.deaths.barrier.wait(10)
    assert (await get(http, "/tasks/t1"))["status"] == "timed_out"


@pytest.mark.parametrize(
    ("limit", "blocked_seconds"),
    [(2.0, 0.0), (None, 1.5), (3.0, 1.5)],
    ids=["free", "unlimited", "in time"],
)
async def test_other_tasks_go_on(
    http: HttpConnection, instance: Instance, limit: float | None, blocked_seconds: float
) -> None:
    dispatch = await running(http, instance)
    reply = await beat_holding(instance, dispatch, timeout=limit, blocked_seconds=blocked_seconds)
    assert not reply.stale
    assert (await get(http, "/tasks/t1"))["status"] == "running"


async def test_a_cancellation_is_enforced_after_a_grace_while_the_instance_is_blocked(
    http: HttpConnection, instance: Instance
) -> None:
    dispatch = await running(http, instance)
    await post(http, "/tasks/t1/cancel")
    reply = await beat_holding(instance, dispatch, timeout=None, blocked_seconds=1.5)
    assert [each.task_id for each in reply.cancelled] == ["t1"]

    async def is_stale() -> bool:
        reply = await beat_holding(instance, dispatch, timeout=None, blocked_seconds=1.5)
        return [held.task_id for held in reply.stale] == ["t1"]

    await eventually(is_stale, seconds=10)
    view = await get(http, "/tasks/t1")
    assert (view["status"], view["result"]["error"]["message"]) == ("cancelled", "the task was cancelled")


async def test_a_cancellation_is_left_to_an_instance_that_is_not_blocked(
    http: HttpConnection, instance: Instance
) -> None:
    dispatch = await running(http, instance)
    await post(http, "/tasks/t1/cancel")
    begun = time.monotonic()
    while time.monotonic() - begun < 2.2:  # longer than the grace
        reply = await beat_holding(instance, dispatch, timeout=None)
        assert [each.task_id for each in reply.cancelled] == ["t1"]
        await asyncio.sleep(0.2)


async def test_a_task_of_another_instance_is_not_ended(http: HttpConnection, instance: Instance) -> None:
    dispatch = await running(http, instance)
    await instance.server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="two"))
    other = Instance(instance.server, instance.queue, instance.work, "two")
    await beat_holding(other, dispatch, timeout=2.0, blocked_seconds=1.5)
    assert (await get(http, "/tasks/t1"))["status"] == "running"
