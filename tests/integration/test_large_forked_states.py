"""States that fill a request: what only forks need must not make their writes fail."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import string
from random import Random
from typing import Final

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.errors import RetryRefusedError
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.services.gateway import HttpGateway
from llama_deploy.types.retries import TaskRetry
from tests.integration.in_process import Stack, result_of, running_stack, until

MAX_BODY_BYTES: Final = 1024 * 1024


class Second(Event):
    pass


class Third(Event):
    pass


class Large(Workflow):
    """Replaces a part of its state in each step, and waits in the last one."""

    def __init__(self, *, constant: int, changing: int) -> None:
        super().__init__(timeout=None)
        self._constant = constant
        self._changing = changing
        self._random = Random(1)  # noqa: S311 - not for secrets

    async def change(self, ctx: Context) -> None:
        text = "".join(self._random.choices(string.ascii_letters, k=self._changing))
        await ctx.store.set("changing", text)

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Second:
        await ctx.store.set("constant", "x" * self._constant)
        await self.change(ctx)
        return Second()

    @step
    async def second(self, ctx: Context, ev: Second) -> Third:
        await self.change(ctx)
        return Third()

    @step
    async def third(self, ctx: Context, ev: Third) -> StopEvent:
        await self.change(ctx)
        await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent())
        return StopEvent(result="ended")


def service_over_http(stack: Stack, workflow: Workflow) -> WorkflowService:
    """Return a service whose requests are limited, unlike those of one in the same process."""
    config = WorkflowServiceConfig(
        host="127.0.0.1", port=0, service_name="service", drain_timeout=2.0, idle_timeout=0.0
    )
    return WorkflowService(workflow, stack.queue, config, gateway=HttpGateway(stack.server.config.url))


@pytest.mark.parametrize(
    ("constant", "changing"),
    [(600_000, 240_000), (930_000, 60_000)],
    ids=["the change is large", "the state leaves no room for the change"],
)
async def test_a_state_that_fits_is_written_whether_its_change_fits_or_not(
    constant: int, changing: int
) -> None:
    async with running_stack(max_body_bytes=MAX_BODY_BYTES) as stack:
        workflow = Large(constant=constant, changing=changing)
        async with stack.serving(service_over_http(stack, workflow)):
            task_id = await stack.submit()
            await until(lambda: stack.is_parked(task_id))
            await stack.send(task_id, HumanResponseEvent())
            assert result_of(await stack.end(task_id)) == "ended"


async def test_a_state_whose_change_was_left_out_cannot_be_gone_back_to() -> None:
    async with running_stack(max_body_bytes=MAX_BODY_BYTES, retention_journals=True) as stack:
        workflow = Large(constant=930_000, changing=60_000)
        async with stack.serving(service_over_http(stack, workflow)):
            task_id = await stack.submit()
            await until(lambda: stack.is_parked(task_id))
            await stack.send(task_id, HumanResponseEvent())
            assert result_of(await stack.end(task_id)) == "ended"
            with pytest.raises(RetryRefusedError) as caught:
                await stack.plane.retries.retry(task_id, TaskRetry(origin="1.2"))
            assert caught.value.reason == "step"
