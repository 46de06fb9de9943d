"""Two instances share the tasks of a service, over each queue."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.message_queues import config_from_url
from tests.integration.in_process import result_of, running_stack
from tests.servers.brokers import FASTEST

TASKS = 200
LEAST = 60
"""What each instance is to have of them: 30 %."""
PATIENCE = 80.0


class Counting(Workflow):
    """Returns its argument, and counts who worked."""

    def __init__(self, done: Counter[str], name: str) -> None:
        super().__init__()
        self._done = done
        self._name = name

    @step
    async def count(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(0.01)  # the work
        self._done[self._name] += 1
        return StopEvent(result=ev.n)


@pytest.mark.parametrize("kind", FASTEST)
async def test_two_instances_share_the_tasks(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in FASTEST[kind].environment.items():
        monkeypatch.setenv(name, value)
    done: Counter[str] = Counter()
    with FASTEST[kind].make(tmp_path) as broker:
        async with running_stack(config_from_url(broker.url).connect, lease_seconds=5.0) as stack:
            one, two = (stack.service(Counting(done, name)) for name in ("one", "two"))
            async with stack.serving(one), stack.serving(two), asyncio.timeout(PATIENCE):
                task_ids = await asyncio.gather(*(stack.submit(n=n) for n in range(TASKS)))
                views = await asyncio.gather(*(stack.end(each, wait=PATIENCE) for each in task_ids))
    assert [result_of(view) for view in views] == list(range(TASKS))
    assert done.total() == TASKS
    assert min(done["one"], done["two"]) >= LEAST, done
