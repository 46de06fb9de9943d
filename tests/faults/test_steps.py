"""Runs go on after their last finished step, whatever dies; paused processes change nothing."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Sequence

import psutil
import pytest

from llama_deploy import Client, SimpleMessageQueueConfig
from llama_deploy.client import TaskHandle
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.gateway import HttpGateway
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import Program
from llama_deploy.types import TaskEvent, TaskStatus
from llama_deploy.types.instance_protocol import (
    AttemptEvents,
    AttemptOutcome,
    EventPayload,
    JournalWrite,
    ReleaseRequest,
    RunHeader,
)
from llama_deploy.types.topics import CONTROL_PLANE, Topics
from tests.faults.chaos import percentiles, quantile
from tests.faults.conftest import System
from tests.faults.ledger import AT_ONCE, EXPECTED, Death, Faults, Ledger, takeover
from tests.faults.programs.flows import ITEMS, Answer
from tests.faults.stream_judge import comebacks
from tests.figures import Tell

pytestmark = pytest.mark.faults

RUNNING = 20
MEGABYTE = 1024 * 1024
MOST_GROWTH = 40 * MEGABYTE


async def two_instances(system: System, client: Client, flow: str, **env: str) -> dict[int, Program]:
    """Start two instances of a service, and return them by their process ids."""
    services = [system.module("hosts", flow, **env) for _ in range(2)]
    await system.instances(client, 2, flow)
    return {service.pid: service for service in services}


async def begun(ledger: Ledger, step: str, count: int = 1) -> int:
    """Wait until as many runs have begun a step; return the process of the last one."""
    await eventually(lambda: len(ledger.begun(step=step)) >= count, seconds=60)
    return ledger.begun(step=step)[-1].pid


def begun_elsewhere(ledger: Ledger, step: str, pid: int) -> set[str]:
    """Return the tasks that have begun a step in other processes."""
    return {line.task for line in ledger.begun(step=step) if line.pid != pid}


async def all_events(handle: TaskHandle) -> list[TaskEvent]:
    events = [event async for event in handle.events()]
    assert [event.index for event in events] == list(range(len(events)))
    assert [event.terminal for event in events] == [False] * (len(events) - 1) + [True]
    return events


async def test_a_chain_goes_on_after_its_last_finished_step(system: System) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "1"
    system.start("core.py")
    ledger = Ledger(system.ledger_path)
    async with system.client() as client:
        services = await two_instances(system, client, "chain")
        handle = await client.submit("chain", name="it", seconds=0.5)
        first = await begun(ledger, "three")
        services[first].kill()
        death = Death(first, time.monotonic())
        # The state goes on with the steps: it holds each of them once.
        assert await handle.result() == f"it: {EXPECTED['chain']}"
        events = await all_events(handle)
    assert ledger.violations("chain", "it", Faults(deaths=[death])) == []
    where = [(line.step, line.pid == first) for line in ledger.begun()]
    assert where == [
        ("one", True),
        ("two", True),
        ("three", True),
        ("three", False),
        ("four", False),
        ("five", False),
    ]
    assert [event.data.get("step") for event in events[:-1]] == ["one", "two", "three", "four", "five"]


@pytest.mark.parametrize("flow", ["fan", "collect"])
async def test_a_fan_out_goes_on_with_what_is_left(system: System, flow: str) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "1"
    system.start("core.py")
    ledger = Ledger(system.ledger_path)
    async with system.client() as client:
        services = await two_instances(system, client, flow)
        handle = await client.submit(flow, name="it", seconds=0.3)
        await eventually(lambda: len(ledger.begun("end")) > ITEMS // 2, seconds=60)
        first = ledger.begun()[0].pid
        services[first].kill()
        death = Death(first, time.monotonic())
        assert await handle.result() == f"it: {EXPECTED[flow]}"
        await all_events(handle)
    assert ledger.violations(flow, "it", Faults(deaths=[death])) == []
    again = len(ledger.begun()) - len({line.step for line in ledger.begun()})
    assert again <= AT_ONCE[flow]


@pytest.mark.parametrize("flow", ["chain", "fan"])
async def test_an_outage_longer_than_the_time_limit_of_a_run_does_not_end_it(
    system: System, flow: str
) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "2"
    system.start("core.py", "message_queue")
    control_plane = system.start("core.py", "control_plane")
    ledger = Ledger(system.ledger_path)
    async with system.client() as client:
        system.module("hosts", flow, FLOW_TIMEOUT="4")
        await system.instances(client, 1, flow)
        handle = await client.submit(flow, name="it", seconds=0.2)
        await eventually(lambda: len(ledger.begun("end")) >= 2, seconds=60)
        control_plane.kill()
        killed = time.monotonic()
        await eventually(lambda: time.monotonic() - killed > 5)
        control_plane.start()
        assert await handle.result() == f"it: {EXPECTED[flow]}"
        assert (await handle.info()).attempt == 1
    assert ledger.violations(flow, "it", Faults()) == []


async def test_a_zombie_changes_nothing(system: System) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "1"
    core = system.start("core.py")
    ledger = Ledger(system.ledger_path)
    async with system.client() as client:
        services = await two_instances(system, client, "chain")
        names = [f"it-{n}" for n in range(8)]
        handles = [await client.submit("chain", name=name, seconds=0.7) for name in names]
        first = await begun(ledger, "two")
        services[first].pause()
        paused = time.monotonic()
        lost = {line.task for line in ledger.begun() if line.pid == first}
        # The queue gives the paused instance what it had asked for, where nobody claims it.
        await eventually(lambda: lost <= begun_elsewhere(ledger, "three", first), seconds=60)
        # It wakes up while the other one is at work on its tasks.
        death = Death(first, paused, time.monotonic())
        services[first].resume()
        results = await asyncio.gather(*(handle.result() for handle in handles))
        assert results == [f"{name}: {EXPECTED['chain']}" for name in names]
        before = [await all_events(handle) for handle in handles]
        for events in before:
            writers = [event.data["pid"] for event in events if not event.terminal]
            assert comebacks(writers, Faults([death])) == []
        await system.instances(client, 2, "chain")
        # It is of use again, and so has dealt with what it had.
        more = [await client.submit("chain", name=f"more-{n}", seconds=0) for n in range(40)]
        await asyncio.gather(*(handle.result() for handle in more))
        assert first in {line.pid for line in ledger.begun() if line.task.startswith("more-")}
        assert [await all_events(handle) for handle in handles] == before
        assert {(await handle.info()).attempt for handle in handles} == {1, 2}
    assert [each for name in names for each in ledger.violations("chain", name, Faults([death]))] == []
    told = re.findall(r"WARNING:\S+:rejected .* of (attempt 1 of task [\w-]+)", core.text)
    assert len(told) == len(set(told))


async def test_what_a_stale_attempt_sends_is_refused_and_told_once(system: System) -> None:
    """With the very token of the attempt, which the control plane's database tells."""
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "1"
    core = system.start("core.py")
    ledger = Ledger(system.ledger_path)
    async with system.client() as client:
        services = await two_instances(system, client, "chain")
        handle = await client.submit("chain", name="it", seconds=0.5)
        first = await begun(ledger, "two")
        token = token_of(system, handle.task_id)
        services[first].kill()
        await eventually(lambda: len(ledger.begun(step="two")) == 2, seconds=90)
        await send_everything(system, handle.task_id, token)
        assert await handle.result() == f"it: {EXPECTED['chain']}"
        events = await all_events(handle)
        await send_everything(system, handle.task_id, token)
        assert await handle.result() == f"it: {EXPECTED['chain']}"
        assert await all_events(handle) == events
        assert {event.type for event in events} == {"Progress", "StopEvent"}
    core.wait_for_output(r"rejected")
    assert len(re.findall(r"WARNING:\S+:rejected .* of attempt 1 of task", core.text)) == 1


def token_of(system: System, task_id: str) -> str:
    """Return the secret of the attempt under way."""
    connection = sqlite3.connect(f"file:{system.folder}/control_plane.db?mode=ro", uri=True)
    try:
        ((token,),) = connection.execute("SELECT token FROM tasks WHERE task_id = ?", [task_id]).fetchall()
    finally:
        connection.close()
    return str(token)


async def send_everything(system: System, task_id: str, token: str) -> None:
    """Send, for the first attempt, each kind of thing that an instance sends."""
    forged = EventPayload(type="Forged", data={})
    attempt = {"task_id": task_id, "attempt": 1, "token": token}
    gateway = HttpGateway(system.url)
    header = RunHeader(fingerprint="any", library_version="any")
    try:
        for seq in range(4):
            write = JournalWrite(
                **attempt, seq=seq, entry="forged", header=header, first=seq, events=[forged]
            )
            reply = await gateway.journal(write)
            assert (reply.stored, reply.retriable) == (False, False)
        assert (await gateway.release(ReleaseRequest(**attempt))).outcome == "stale"
    finally:
        await gateway.close()
    reports: Sequence[tuple[ActionTypes, AttemptEvents | AttemptOutcome]] = (
        (ActionTypes.TASK_STREAM, AttemptEvents(**attempt, first=2, events=[forged])),
        (
            ActionTypes.COMPLETED_TASK,
            AttemptOutcome(**attempt, first=2, events=[forged], status=TaskStatus.SUCCEEDED, result="forged"),
        ),
    )
    port = int(system.env["SIMPLE_MESSAGE_QUEUE_PORT"])
    async with await SimpleMessageQueueConfig(port=port).connect() as queue:
        for action, data in reports:
            message = QueueMessage(type=CONTROL_PLANE, action=action, data=data.model_dump(mode="json"))
            await queue.publish(message, Topics("llama_deploy").control_plane)


@pytest.mark.parametrize(
    "count", [100, pytest.param(500, marks=[pytest.mark.long, pytest.mark.timeout(400)])]
)
async def test_runs_that_wait_for_people(system: System, tell: Tell, count: int) -> None:
    parts = [system.start("core.py", "message_queue"), system.start("core.py", "control_plane")]
    service = system.module("hosts", "human", LLAMA_DEPLOY_WF_SERVICE_IDLE_TIMEOUT="0.2")
    async with system.client() as client:
        await system.instances(client, 1, "human")
        warm = await client.submit("human", name="warm", seconds=0)
        await warm.send(Answer(text="yes"))
        await warm.result()
        idle = psutil.Process(service.pid).memory_info().rss
        names = [f"it-{n}" for n in range(count)]
        handles = [await client.submit("human", name=name, seconds=0) for name in names]
        await all_wait(handles)
        growth = psutil.Process(service.pid).memory_info().rss - idle
        for program in [*parts, service]:
            program.kill()
        for program in [*parts, service]:
            program.start()
        answers = [
            handle.send(Answer(text=f"answer {n}"), idempotency_key="the answer")
            for n, handle in enumerate(handles)
        ]
        await asyncio.gather(*answers)
        results = await asyncio.gather(*(handle.result(timeout=120) for handle in handles))
    assert results == [f"{name}: answer {n}" for n, name in enumerate(names)]
    begins = Ledger(system.ledger_path).begun()
    assert len(begins) == 3 * (count + 1)
    tell(f"{count} waiting runs: {growth / MEGABYTE:.1f} MB above idle")
    assert growth < MOST_GROWTH


async def all_wait(handles: Sequence[TaskHandle]) -> None:
    """Wait until every task is parked."""
    for handle in handles:

        async def waits(handle: TaskHandle = handle) -> bool:
            return await handle.status() is TaskStatus.WAITING

        await eventually(waits, seconds=90)


@pytest.mark.parametrize("lease", [2.0, 5.0])
async def test_takeover_within_the_lease_and_a_second(system: System, tell: Tell, lease: float) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = str(lease)
    system.start("core.py")
    ledger = Ledger(system.ledger_path)
    async with system.client() as client:
        room = {"LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS": str(4 * RUNNING)}
        services = await two_instances(system, client, "chain", **room)
        names = [f"it-{n}" for n in range(2 * RUNNING)]
        handles = [await client.submit("chain", name=name, seconds=0.8) for name in names]
        first = await begun(ledger, "one", len(names))
        services[first].kill()
        death = Death(first, time.monotonic())
        await asyncio.gather(*(handle.result() for handle in handles))
    lines = ledger.lines()
    times = [
        seconds
        for name in names
        for seconds in takeover([line for line in lines if line.task == name], death)
    ]
    tell(f"takeover with a lease of {lease:g} s: {percentiles(times)}")
    assert len(times) >= RUNNING / 2
    assert quantile(times, 0.99) <= lease + 1.0
