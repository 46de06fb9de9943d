"""Tasks whose processes have died twice run alone in a process that has no supervisor, if it fits them."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator

import pytest
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.services import WorkflowService
from llama_deploy.state_stores.records import SUSPECT_DEATHS, TaskRecord
from llama_deploy.types import ServiceDefinition, TaskStatus
from llama_deploy.types.instance_protocol import ClaimRequest, Heartbeat, ProcessDeath
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


async def parked_suspect(stack: Stack) -> tuple[str, ServiceDefinition]:
    """Return a suspect of the service `echo` whose run waits for an answer, and what has begun its run."""
    asks = stack.service(Asks(timeout=None), "echo", idle_timeout=0.01)
    async with stack.serving(asks):
        task_id = await stack.submit("echo", timeout=None)

        async def is_parked() -> bool:
            return await stack.is_parked(task_id)

        await until(is_parked)
    task = await stored(stack, task_id)
    await stack.store.transact(lambda tx: tx.tasks.update([task._replace(deaths=SUSPECT_DEATHS)]))
    return task_id, asks.service_definition


async def stored(stack: Stack, task_id: str) -> TaskRecord:
    return (await stack.store.read(lambda tx: tx.tasks.load([task_id])))[task_id]


async def test_a_suspect_that_no_living_instance_fits_stops_nothing(
    stack: Stack, gates: Gates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stranded, _ = await parked_suspect(stack)
    await stack.send(stranded, HumanResponseEvent(text="yes"))
    # These come after it in the topic of the suspects.
    suspects = await make_suspects(stack, "echo")
    for name in (*SUSPECTS, "other"):
        gates.open[name].set()
    service = gated(stack, gates, "echo")
    async with stack.serving(service):
        for task_id in suspects:
            assert (await stack.end(task_id)).status is TaskStatus.SUCCEEDED
        beats = len(beats_of(service))
        await until(lambda: len(beats_of(service)) > beats + 4)
        assert caplog.text.count("takes no new tasks until") == len(suspects)
        assert result_of(await stack.run("echo", name="other")) == "other"
        view = await stack.plane.tasks.get(stranded)
        assert (view.status, view.attempt) == (TaskStatus.QUEUED, 2)
        assert "step 'ask' does not exist in this version" in (view.stranded or "")


class Beats:
    """Instances of the service `echo` that only send heartbeats."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._slots: dict[str, int] = {}

    async def join(self, definition: ServiceDefinition, *names: str) -> None:
        for name in names:
            new = definition.model_copy(update={"instance_id": name, "process_id": name})
            await self._stack.plane.services.register(new)
            self._slots[name] = 4
        await self.asked()

    def drain(self, name: str) -> None:
        self._slots[name] = 0

    async def asked(self) -> set[str]:
        """Return which of them are asked to have a suspect run alone, after all have told how they are."""
        for _ in range(2):
            self._stack.plane.services.hints.forget()
            beats = [Heartbeat(instance_id=name, slots=slots) for name, slots in self._slots.items()]
            replies = [await self._stack.plane.services.heartbeat(beat) for beat in beats]
            found = {beat.instance_id for beat, reply in zip(beats, replies, strict=True) if reply.suspects}
        return found


@pytest.fixture
async def slow() -> AsyncIterator[Stack]:
    """Nothing is published again within the time of a test."""
    async with running_stack(lease_seconds=60.0, redispatch_seconds=600) as stack:
        yield stack


async def test_only_instances_that_fit_a_suspect_and_do_not_drain_are_asked(
    slow: Stack, gates: Gates
) -> None:
    suspect, old = await parked_suspect(slow)
    beats = Beats(slow)
    await beats.join(gated(slow, gates, "echo").service_definition, *(f"new {n}" for n in range(10)))
    await slow.send(suspect, HumanResponseEvent(text="yes"))
    assert await beats.asked() == set()
    await beats.join(old, "a", "b")
    (first,) = await beats.asked()
    assert first in {"a", "b"}
    beats.drain(first)
    assert await beats.asked() == {"a", "b"} - {first}
    await beats.join(old, "c")
    beats.drain("a")
    beats.drain("b")
    assert await beats.asked() == {"c"}


async def test_a_suspect_whose_claim_was_refused_does_not_count_until_it_is_published_again(
    slow: Stack, gates: Gates
) -> None:
    suspect, old = await parked_suspect(slow)
    beats = Beats(slow)
    await beats.join(gated(slow, gates, "echo").service_definition, "new")
    await beats.join(old, "old")
    await slow.send(suspect, HumanResponseEvent(text="yes"))
    assert await beats.asked() == {"old"}
    claim = ClaimRequest(task_id=suspect, attempt=2, instance_id="new")
    for _ in range(2):
        (reply,) = await slow.plane.attempts.claim([claim])
        assert not reply.granted
        assert await beats.asked() == set()
    task = await stored(slow, suspect)
    assert task.redispatch_at is not None, "it is published again"
    await slow.plane._sweeps.dispatcher.dispatch([task], due_only=False)
    assert await beats.asked() == {"old"}
    (reply,) = await slow.plane.attempts.claim([claim.model_copy(update={"instance_id": "old"})])
    assert reply.granted


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
