"""Tasks whose processes have died twice run alone in a process that has no supervisor."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator

import pytest
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.services import WorkflowService
from llama_deploy.types import ServiceDefinition, TaskStatus
from llama_deploy.types.instance_protocol import ClaimRequest, ProcessDeath
from tests.integration.in_process import ListeningGateway, Stack, beats_of, result_of, running_stack, until

SUSPECTS = ("first", "second")


class Gates:
    """Lets named runs end, and knows which of them run."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.begun: list[str] = []
        self.beside: defaultdict[str, set[str]] = defaultdict(set)
        """Which others each run has seen running."""
        self.open: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def pass_through(self, name: str) -> None:
        self.begun.append(name)
        for other in self.running:
            self.beside[other].add(name)
        self.beside[name] |= self.running
        self.running.add(name)
        await self.open[name].wait()
        self.running.discard(name)


class Gated(Workflow):
    """Runs until its gate is open."""

    gates: Gates

    @step
    async def run_until_open(self, ev: StartEvent) -> StopEvent:
        await self.gates.pass_through(ev.name)
        return StopEvent(result=ev.name)


class Asks(Workflow):
    """Waits for a person, for a while or forever."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(
            HumanResponseEvent, waiter_event=InputRequiredEvent(), timeout=ev.timeout
        )
        return StopEvent(result=answer.text)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack(lease_seconds=3.0) as stack:
        yield stack


@pytest.fixture
def gates() -> Gates:
    return Gates()


def gated(stack: Stack, gates: Gates, name: str) -> WorkflowService:
    workflow = Gated(timeout=None)
    workflow.gates = gates
    return stack.service(workflow, name)


async def make_suspects(stack: Stack, service_name: str) -> list[str]:
    """Submit two tasks whose processes die twice."""
    dead = ServiceDefinition(service_name=service_name, instance_id="dead")
    await stack.plane.services.register(dead)
    task_ids = [await stack.submit(service_name, name=name) for name in SUSPECTS]
    for attempt in (1, 2):
        await stack.plane.services.register(dead)
        claims = [ClaimRequest(task_id=each, attempt=attempt, instance_id="dead") for each in task_ids]
        assert all(reply.granted for reply in await stack.plane.attempts.claim(claims))
        await stack.plane.deaths.report(ProcessDeath(instances=["dead"], reason="was killed"))
    return task_ids


async def test_all_services_of_a_process_step_back_for_a_suspect_and_go_on(
    stack: Stack, gates: Gates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    suspects = await make_suspects(stack, "echo")
    other = gated(stack, gates, "other")
    async with stack.serving(other):
        before = await stack.submit("other", name="before")
        await until(lambda: "before" in gates.running)
        async with stack.serving(gated(stack, gates, "echo")):
            await until(lambda: "takes no new tasks until" in caplog.text)
            await until(lambda: beats_of(other)[-1].slots == 0)
            after = [await stack.submit(name, name=f"after {name}") for name in ("echo", "other")]
            gates.open["before"].set()
            assert result_of(await stack.end(before)) == "before"
            await until(lambda: bool(gates.running & set(SUSPECTS)))
            (one,) = gates.running
            beats = len(beats_of(other))
            await until(lambda: len(beats_of(other)) > beats + 1)
            assert gates.running == {one}
            gates.open[one].set()
            await until(lambda: gates.running == {"after echo", "after other"})
            for name in ("after echo", "after other"):
                gates.open[name].set()
            for name in SUSPECTS:
                gates.open[name].set()
            for task_id in (*suspects, *after):
                assert (await stack.end(task_id)).status is TaskStatus.SUCCEEDED
    assert not gates.beside["first"]
    assert not gates.beside["second"]
    for task_id in suspects:
        assert f"task {task_id} runs alone in process" in caplog.text


async def test_a_run_that_only_waits_does_not_hold_up_a_suspect(stack: Stack, gates: Gates) -> None:
    suspects = await make_suspects(stack, "echo")
    for name in SUSPECTS:
        gates.open[name].set()
    asks = stack.service(Asks(timeout=None), "asks", idle_timeout=None)
    async with stack.serving(asks):
        waits = await stack.submit("asks", timeout=None)
        await until(lambda: any(held.waits for each in beats_of(asks) for held in each.held))
        async with stack.serving(gated(stack, gates, "echo")):
            for task_id in suspects:
                assert (await stack.end(task_id)).status is TaskStatus.SUCCEEDED
        assert (await stack.plane.tasks.get(waits)).status is TaskStatus.WAITING, "it was parked"
        await stack.send(waits, HumanResponseEvent(text="yes"))
        assert result_of(await stack.end(waits)) == "yes"


async def test_a_run_whose_wait_soon_ends_is_not_one_that_only_waits(stack: Stack) -> None:
    asks = stack.service(Asks(timeout=None), "asks", idle_timeout=None)
    async with stack.serving(asks):
        task_id = await stack.submit("asks", timeout=stack.server.config.lease_seconds - 0.5)
        assert (await stack.end(task_id)).status is TaskStatus.FAILED
        assert any(each.held for each in beats_of(asks))
        assert not any(held.waits for each in beats_of(asks) for held in each.held)


async def test_an_instance_for_suspects_takes_nothing_else_and_ends_when_there_are_none(
    stack: Stack, gates: Gates
) -> None:
    suspects = await make_suspects(stack, "echo")
    workflow = Gated(timeout=None)
    workflow.gates = gates
    config = gated(stack, gates, "echo").config.model_copy(update={"max_concurrent_tasks": 1})
    alone = WorkflowService(workflow, stack.queue, config, gateway=stack.server.gateway(), alone=True)
    async with stack.serving(alone) as running:
        other = await stack.submit("echo", name="other")
        await until(lambda: len(gates.running) == 1)
        [stored] = await stack.store.read(lambda tx: tx.instances.load(service_names=["echo"]))
        assert stored.only_suspects
        for name in SUSPECTS:
            gates.open[name].set()
        for task_id in suspects:
            assert (await stack.end(task_id)).status is TaskStatus.SUCCEEDED
        await until(running.done)
    assert gates.beside == {"first": set(), "second": set()}
    assert (await stack.plane.tasks.get(other)).status is TaskStatus.QUEUED


async def test_an_instance_for_suspects_says_so_when_it_registers_and_until_it_has_stopped(
    stack: Stack, gates: Gates
) -> None:
    suspects = await make_suspects(stack, "echo")
    workflow = Gated(timeout=None)
    workflow.gates = gates
    config = gated(stack, gates, "echo").config.model_copy(update={"max_concurrent_tasks": 1})
    gateway = ListeningGateway(stack.plane)
    alone = WorkflowService(workflow, stack.queue, config, gateway=gateway, alone=True)
    await alone.register_to_control_plane()
    assert (await only_suspects(stack)) == [True], "it has sent no heartbeat yet"
    async with stack.serving(alone) as running:
        await until(lambda: len(gates.running) == 1)
        running.cancel()
        count = len(gateway.beats)
        await until(lambda: len(gateway.beats) > count)
        assert (await only_suspects(stack)) == [True]
        for name in SUSPECTS:
            gates.open[name].set()
    assert suspects


async def only_suspects(stack: Stack) -> list[bool]:
    found = await stack.store.read(lambda tx: tx.instances.load(service_names=["echo"]))
    return [each.only_suspects for each in found if each.instance_id != "dead"]


async def test_the_instances_of_a_process_register_with_it(stack: Stack, gates: Gates) -> None:
    async with stack.serving(gated(stack, gates, "a")), stack.serving(gated(stack, gates, "b")):
        found = await stack.store.read(lambda tx: tx.instances.load())
    assert len(found) == 2
    assert len({each.process_id for each in found} - {None}) == 1
