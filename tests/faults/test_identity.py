"""A script and `llamactl worker` on the same file take over each other's runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llama_deploy.testing.processes import Program
from tests.faults.conftest import PROGRAMS, System
from tests.faults.programs.either import Answer

pytestmark = pytest.mark.faults

FILE = str(PROGRAMS / "either.py")
STARTS: dict[str, Callable[[System], Program]] = {
    "script": lambda system: system.start("either.py"),
    "worker": lambda system: system.worker(f"either={FILE}:Either"),
    "module": lambda system: system.module("either"),
}


@pytest.mark.parametrize("order", [("script", "worker", "module"), ("worker", "script", "worker")])
async def test_instances_that_were_started_in_other_ways_go_on(
    system: System, order: tuple[str, str, str]
) -> None:
    system.start("core.py")
    async with system.client() as client:
        current = STARTS[order[0]](system)
        await system.instances(client, 1, "either")
        session = await client.core.sessions.create()
        task = await client.submit("either", session=session)
        questions = (event async for event in task.events() if event.type == "Asked")
        first = current.pid
        for number, following in enumerate(order[1:]):
            assert (await anext(questions)).data["number"] == number
            current.kill()
            await system.instances(client, 0, "either")
            current = STARTS[following](system)
            await task.send(Answer(text=f"answer {number}", number=number))
        result = await task.result()
        assert result["texts"] == ["answer 0", "answer 1"]
        assert result["first"] == first
        assert result["pids"] == [first, current.pid]
        again = await client.submit("either", session=session)
        for number in range(2):
            await again.send(Answer(text="again", number=number))
        assert (await again.result())["pids"][:2] == [first, current.pid], "the session's state was lost"
