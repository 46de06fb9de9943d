"""An attempt that an instance cannot run, or never takes, does not come to that instance again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from llama_deploy.services import AnyWorkflow
from llama_deploy.types.instance_protocol import ClaimReply, ClaimRequest
from tests.integration.in_process import Stack, running_stack, until
from tests.integration.test_versions import Answer, Approve, Renamed, WithRecord

LEASE = 1.5


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack(lease_seconds=LEASE, redispatch_seconds=600) as stack:
        yield stack


async def answered(stack: Stack) -> str:
    """Return a queued task whose run only a version that is gone has had."""
    async with stack.serving(stack.service(Approve(timeout=None), idle_timeout=0.01)):
        task_id = await stack.submit(n=1)

        async def is_parked() -> bool:
            return await stack.is_parked(task_id)

        await until(is_parked)
    return task_id


async def register(stack: Stack, workflow: AnyWorkflow, instance_id: str, *, alone: bool = False) -> None:
    definition = stack.service(workflow).service_definition
    changes = {"instance_id": instance_id, "process_id": instance_id, "alone": alone}
    await stack.plane.services.register(definition.model_copy(update=changes))


async def let_lease_end(stack: Stack) -> None:
    async def has_ended() -> bool:
        return not (await stack.plane.services.get("service")).count_alive()

    await until(has_ended)


async def claims(stack: Stack, instance_id: str, *, seconds: float) -> list[ClaimReply]:
    """Claim all that the work topic offers for some time."""
    replies: list[ClaimReply] = []
    async with await stack.queue.subscribe("llama_deploy.service") as work:
        try:
            async with asyncio.timeout(seconds):
                while True:
                    for delivery in await work.receive(1):
                        data = delivery.message.data
                        request = ClaimRequest(
                            task_id=data["task_id"], attempt=data["attempt"], instance_id=instance_id
                        )
                        replies += await stack.plane.attempts.claim([request])
                        await delivery.ack()
        except TimeoutError:
            return replies


async def test_a_paused_instance_that_fits_is_granted_what_another_version_has_begun(stack: Stack) -> None:
    task_id = await answered(stack)
    await register(stack, WithRecord, "paused")
    await let_lease_end(stack)
    await stack.send(task_id, Answer(text="yes"))
    [reply] = await claims(stack, "paused", seconds=LEASE / 2)
    assert reply.granted, reply.reason


async def test_a_paused_instance_that_does_not_fit_is_refused_once(stack: Stack) -> None:
    task_id = await answered(stack)
    await register(stack, Renamed, "paused")
    await let_lease_end(stack)
    await stack.send(task_id, Answer(text="yes"))
    [reply] = await claims(stack, "paused", seconds=LEASE / 2)
    assert "step 'ask' does not exist" in str(reply.reason)
    assert (await stack.plane.services.get("service")).count_alive() == 1, "its lease is renewed"
    assert "step 'ask' does not exist" in str((await stack.plane.tasks.get(task_id)).stranded)


async def test_a_run_that_only_an_instance_for_suspects_fits_is_stranded(stack: Stack) -> None:
    task_id = await answered(stack)
    await register(stack, Renamed, "other")
    await register(stack, Approve, "lone", alone=True)
    await stack.send(task_id, Answer(text="yes"))
    assert "step 'ask' does not exist" in str((await stack.plane.tasks.get(task_id)).stranded)
    async with await stack.queue.subscribe("llama_deploy.service.lone") as offered:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(offered.receive(1), LEASE / 2)
