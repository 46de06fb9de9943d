"""Processes are killed at the worst moment, and every accepted task still ends once."""

from __future__ import annotations

import asyncio
import re
import signal
import time

import pytest

from llama_deploy import Client
from llama_deploy.client import TaskHandle
from llama_deploy.errors import TaskFailedError
from llama_deploy.testing.conditions import eventually
from tests.faults.conftest import System
from tests.pulse import Pulse

pytestmark = pytest.mark.faults

TASKS = 200
LEASE_SECONDS = 5.0


async def submit_all(client: Client, count: int, **arguments: object) -> list[TaskHandle]:
    """Submit as many tasks, each in a session of its own; each is accepted when this returns."""
    submissions = (client.submit("ledger", name=f"task-{n}", arguments=arguments) for n in range(count))
    return await asyncio.gather(*submissions)


async def check_all_end_once(handles: list[TaskHandle]) -> None:
    """Every task succeeded with its own result, and its stream has one terminal event, the last."""
    results = await asyncio.gather(*(handle.result(timeout=90) for handle in handles))
    assert results == [f"task-{n} 1" for n in range(len(handles))]
    for handle in handles[::20]:
        events = [event async for event in handle.events()]
        assert [event.index for event in events] == list(range(len(events)))
        assert [event.terminal for event in events] == [False] * (len(events) - 1) + [True]


async def test_the_only_instance_is_killed_and_started_again(system: System) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "1"
    system.start("core.py")
    service = system.service()
    async with system.client() as client:
        await system.instances(client, 1)
        handle = await client.submit("ledger", name="long", seconds=1)
        await system.begun(1)
        service.kill()
        service.start()
        assert await handle.result() == "long 1"
        assert (await handle.info()).attempt == 2


async def test_kill_of_a_service_under_200_tasks(system: System, pulse: Pulse) -> None:
    system.start("core.py")
    victim = system.service(LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="40")
    async with system.client() as client:
        await system.instances(client, 1)
        handles = await submit_all(client, TASKS, seconds=0.3, events=3)
        await system.begun(60)
        victim.kill()
        killed = time.monotonic()
        system.service(LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="40")
        await check_all_end_once(handles)
        assert pulse.idle_seconds(killed) < 60
    assert set(system.ledger("end")) == {f"task-{n}" for n in range(TASKS)}


async def test_kill_of_the_queue_under_200_tasks(system: System) -> None:
    queue = system.start("core.py", "message_queue")
    system.start("core.py", "control_plane")
    for _ in range(2):
        system.service(LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="20")
    async with system.client() as client:
        await system.instances(client, 2)
        handles = await submit_all(client, TASKS, seconds=0.2, events=3)
        await system.begun(60)
        queue.kill()
        queue.start()
        await check_all_end_once(handles)
    # Nobody who ran a task died, so each ran once.
    assert set(system.ledger("begin").values()) == {1}


async def test_kill_of_a_queue_without_a_journal_is_repaired(system: System) -> None:
    system.env.pop("SIMPLE_MESSAGE_QUEUE_JOURNAL_PATH")
    system.env["CONTROL_PLANE_REDISPATCH_SECONDS"] = "2"
    queue = system.start("core.py", "message_queue")
    control_plane = system.start("core.py", "control_plane")
    system.service(LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="20")
    async with system.client() as client:
        await system.instances(client, 1)
        handles = await submit_all(client, TASKS, seconds=0.2, events=3)
        await system.begun(60)
        queue.kill()
        queue.start()
        await check_all_end_once(handles)
    # A run is repeated only if reports of its attempt were in the memory of the queue.
    lost = set(re.findall(r"reports of attempt \d+ of task (\S+) are lost", control_plane.text))
    begins = system.ledger("begin")
    assert {handle.task_id for n, handle in enumerate(handles) if begins[f"task-{n}"] > 1} <= lost


async def test_kill_of_the_control_plane_under_200_tasks(system: System) -> None:
    system.start("core.py", "message_queue")
    control_plane = system.start("core.py", "control_plane")
    for _ in range(2):
        system.service(LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="20")
    async with system.client() as client:
        await system.instances(client, 2)
        handles = await submit_all(client, TASKS, seconds=0.2, events=3)
        await system.begun(60)
        control_plane.kill()
        control_plane.start()
        await check_all_end_once(handles)
        assert {service.id for service in await client.core.services.list()} == {"ledger"}
        sessions = {session.id for session in await client.core.sessions.list()}
        assert {handle.session_id for handle in handles} <= sessions


async def test_work_that_waits_goes_on_soon_after_a_long_outage(system: System, pulse: Pulse) -> None:
    system.env["CONTROL_PLANE_REDISPATCH_SECONDS"] = "120"
    system.start("core.py", "message_queue")
    control_plane = system.start("core.py", "control_plane")
    system.service(LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="1")
    async with system.client() as client:
        await system.instances(client, 1)
        handles = await submit_all(client, 3, seconds=1)
        await system.begun(1)
        control_plane.kill()
        await asyncio.sleep(14)  # the outage itself
        control_plane.start()
        await system.instances(client, 1)
        back = time.monotonic()
        await check_all_end_once(handles)
        assert pulse.idle_seconds(back) < 2 + 5  # two steps of a second


async def test_kill_of_everything_at_once(system: System) -> None:
    core = system.start("core.py")
    service = system.service(LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="40")
    async with system.client() as client:
        await system.instances(client, 1)
        handles = await submit_all(client, TASKS, seconds=0.2, events=3)
        await system.begun(60)
        core.kill()
        service.kill()
        core.start()
        service.start()
        await check_all_end_once(handles)


async def test_takeover_within_the_lease_and_two_seconds(system: System, pulse: Pulse) -> None:
    system.start("core.py")
    services = {program.pid: program for program in (system.service(), system.service())}
    async with system.client() as client:
        await system.instances(client, 2)
        handle = await client.submit("ledger", name="long", seconds=3)
        await system.begun(1)
        (first,) = system.runs_of("long")
        services[first].kill()
        killed = time.monotonic()
        await system.begun(2)
        assert pulse.idle_seconds(killed) < LEASE_SECONDS + 2
        assert system.runs_of("long")[1] != first
        assert await handle.result() == "long 1"


async def test_a_service_without_a_workflow_is_killed_in_the_middle_of_a_task(
    system: System, pulse: Pulse
) -> None:
    system.start("core.py")
    services = {program.pid: program for program in (system.module("custom"), system.module("custom"))}
    async with system.client() as client:
        await system.instances(client, 2)
        handle = await client.submit("ledger", name="long", seconds=3, events=3)
        await system.begun(1)
        (first,) = system.runs_of("long")
        services[first].kill()
        killed = time.monotonic()
        await system.begun(2)
        assert pulse.idle_seconds(killed) < LEASE_SECONDS + 2
        assert system.runs_of("long")[1] != first
        assert await handle.result() == "long 1"
        assert (await handle.info()).attempt == 2
        events = [event async for event in handle.events()]
        assert [event.index for event in events] == list(range(len(events)))
        assert [event.terminal for event in events] == [False] * (len(events) - 1) + [True]
    assert system.ledger("end")["long"] == 1


async def test_a_paused_service_without_a_workflow_wakes_up_and_changes_nothing(system: System) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "1"
    system.start("core.py")
    services = {program.pid: program for program in (system.module("custom"), system.module("custom"))}
    async with system.client() as client:
        await system.instances(client, 2)
        handle = await client.submit("ledger", name="long", seconds=1.5, events=2)
        await system.begun(1)
        (first,) = system.runs_of("long")
        services[first].pause()
        await system.begun(2)
        assert await handle.result() == "long 1"
        before = [event async for event in handle.events()]
        services[first].resume()
        await system.instances(client, 2)
        assert await client.run("ledger", name="after") == "after 1"
        assert [event async for event in handle.events()] == before
        assert (await handle.info()).attempt == 2


async def test_a_paused_instance_that_wakes_up_changes_nothing(system: System) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "1"
    system.start("core.py")
    services = {program.pid: program for program in (system.service(), system.service())}
    async with system.client() as client:
        await system.instances(client, 2)
        handle = await client.submit("ledger", name="long", seconds=1.5, events=5)
        await system.begun(1)
        (first,) = system.runs_of("long")
        services[first].pause()
        await system.begun(2)
        assert await handle.result() == "long 1"
        before = [event async for event in handle.events()]
        services[first].resume()
        await system.instances(client, 2)
        assert await client.run("ledger", name="after") == "after 1"
        assert [event async for event in handle.events()] == before
        assert (await handle.info()).attempt == 2


async def test_a_machine_that_sleeps_costs_no_attempt(system: System) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "2"
    core, service = system.start("core.py"), system.service()
    async with system.client() as client:
        await system.instances(client, 1)
        handle = await client.submit("ledger", name="long", seconds=12)
        await system.begun(1)
        for asleep in (2.3, 2.7, 4.0):
            for part in (service, core):
                part.pause()
            # The sleep itself: shorter than after which the control plane notices it, and longer.
            await asyncio.sleep(asleep)
            core.resume()
            await asyncio.sleep(0.1)  # the parts do not wake up at the same moment
            service.resume()
            await system.instances(client, 1)
        assert await handle.result() == "long 1"
        assert (await handle.info()).attempt == 1


async def test_sigterm_finishes_what_runs_and_hands_back_what_waits(system: System) -> None:
    system.start("core.py")
    first = system.service(LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="10")
    async with system.client() as client:
        await system.instances(client, 1)
        handles = await submit_all(client, 30, seconds=0.5)
        await system.begun(10)
        assert first.stop() in (0, -signal.SIGTERM)
        system.service(LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="30")
        await check_all_end_once(handles)
    assert set(system.ledger("begin").values()) == {1}


async def test_sigterm_hands_back_what_cannot_finish(system: System) -> None:
    system.start("core.py")
    first = system.service(LLAMA_DEPLOY_WF_SERVICE_DRAIN_TIMEOUT="0.2")
    async with system.client() as client:
        await system.instances(client, 1)
        handle = await client.submit("ledger", name="long", seconds=4, max_attempts=1)
        await system.begun(1)
        first.stop()
        system.service()
        assert await handle.result() == "long 1"
    assert system.ledger("begin")["long"] == 2


async def test_a_task_that_kills_its_instances_ends_with_that_reason(system: System) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "1"
    system.start("core.py")
    for _ in range(3):
        system.service()
    async with system.client() as client:
        await system.instances(client, 3)
        handle = await client.submit("ledger", name="poison", exit=9, max_attempts=3)
        with pytest.raises(TaskFailedError, match="3 processes of service ledger ended") as caught:
            await handle.result()
        assert caught.value.error_type == "llama_deploy.errors.AttemptsExhaustedError"
    assert system.ledger("begin")["poison"] == 3


async def test_a_dead_instance_is_marked_within_the_lease(system: System, pulse: Pulse) -> None:
    system.start("core.py")
    service = system.service()
    async with system.client() as client:
        await system.instances(client, 1)
        service.kill()
        killed = time.monotonic()
        await system.instances(client, 0)
        assert pulse.idle_seconds(killed) < LEASE_SECONDS + 1


async def test_a_blocked_loop_is_named_and_others_take_the_work(system: System) -> None:
    system.start("core.py")
    services = {program.pid: program for program in (system.service(), system.service())}
    async with system.client() as client:
        await system.instances(client, 2)
        blocking = await client.submit("ledger", name="blocking", block=True, seconds=8)
        await system.begun(1)
        (pid,) = system.runs_of("blocking")
        others = await submit_all(client, 40)
        await check_all_end_once(others)
        assert await blocking.result() == "blocking 1"
        assert (await blocking.info()).attempt == 1
        services[pid].wait_for_output(f"by the step 'work' of task {blocking.task_id} at")
    # What it had room for may have been on its way to the blocked instance, and waits there.
    elsewhere = [n for n in range(40) if system.runs_of(f"task-{n}") != [pid]]
    assert len(elsewhere) >= 40 - 7


async def test_two_instances_share_the_work(system: System) -> None:
    system.start("core.py")
    services = {system.service().pid, system.service().pid}
    async with system.client() as client:
        await system.instances(client, 2)
        handles = await submit_all(client, TASKS, seconds=0.02)
        await check_all_end_once(handles)
    shares = dict.fromkeys(services, 0)
    for n in range(TASKS):
        (pid,) = system.runs_of(f"task-{n}")
        shares[pid] += 1
    assert min(shares.values()) >= TASKS * 0.3, shares


async def test_a_session_goes_on_across_restarts_replicas_and_services(system: System) -> None:
    system.start("core.py")
    first = system.service()
    async with system.client() as client:
        await system.instances(client, 1)
        session = await client.core.sessions.create()
        counts = [await session.run("ledger", name="n") for _ in range(2)]
        first.stop()
        system.service()
        await system.instances(client, 1)
        counts += [await session.run("ledger", name="n") for _ in range(2)]
        system.service("second")
        await system.instances(client, 1, "second")
        counts += [await session.run("second", name="n") for _ in range(2)]
        assert counts == [f"n {count}" for count in range(1, 7)]


async def test_the_second_control_plane_on_the_store_ends_with_a_clear_message(system: System) -> None:
    system.start("core.py")
    async with system.client() as client:

        async def answers() -> bool:
            try:
                return await client.core.services.list() == []
            except ConnectionError:
                return False

        await eventually(answers, seconds=90)
    journal = str(system.folder / "another_queue.db")
    other = system.start("core.py", SIMPLE_MESSAGE_QUEUE_PORT="0", SIMPLE_MESSAGE_QUEUE_JOURNAL_PATH=journal)
    assert other.wait() != 0
    assert "StoreLockedError" in other.text
    assert "control_plane.db" in other.text
