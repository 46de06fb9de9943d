"""The control plane is killed while a task is between two services of its route."""

from __future__ import annotations

import pytest

from llama_deploy.testing.conditions import eventually
from llama_deploy.types import TaskStatus
from tests.faults.conftest import System

pytestmark = pytest.mark.faults


async def test_kill_of_the_control_plane_between_two_services(system: System) -> None:
    system.start("core.py", "message_queue")
    first = system.start("routed_core.py", STUCK="yes")
    system.service()
    async with system.client() as client:
        await system.instances(client, 1)
        session = await client.core.sessions.create()
        task = await client.submit("ledger", session=session, name="task")
        await eventually(lambda: "stuck" in first.text, seconds=60)
        assert await task.status() is TaskStatus.PENDING
        first.kill()
        system.start("routed_core.py")
        assert await task.result() == "task-1 2"
        events = [event async for event in task.events()]
        assert [event.terminal for event in events] == [False] * (len(events) - 1) + [True]
        assert (await session.get_state()).state["done"] == ["task-0 1", "task-1 2"]
    assert system.ledger("end") == {"task-0": 1, "task-1": 1}


async def test_kill_of_the_control_plane_while_a_task_runs_at_its_second_service(system: System) -> None:
    system.start("core.py", "message_queue")
    first = system.start("routed_core.py")
    system.service()
    async with system.client() as client:
        await system.instances(client, 1)
        task = await client.submit("ledger", name="task", seconds=1)
        await system.begun(2)
        first.kill()
        system.start("routed_core.py")
        assert await task.result() == "task-1 2"
    assert system.ledger("end") == {"task-0": 1, "task-1": 1}
