"""Which steps a process executes, in memory that another one reads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from llama_deploy.supervisor.step_trail import ExecutingStep, StepTrail, new_memory, read_trail

READER = """
import json, sys
from dataclasses import asdict
from llama_deploy.supervisor.step_trail import read_trail
print(json.dumps([asdict(step) for step in read_trail(int(sys.argv[1]))]))
"""


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = new_memory()
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def trail(memory: int) -> StepTrail:
    return StepTrail(memory)


def names(memory: int) -> list[tuple[str, str]]:
    return [(step.task_id, step.step_name) for step in read_trail(memory)]


def test_nothing_executes_at_first(memory: int, trail: StepTrail) -> None:
    assert trail is not None
    assert read_trail(memory) == []


def test_the_step_in_the_loop(memory: int, trail: StepTrail) -> None:
    one, two = trail.of_task("t1").in_loop("one"), trail.of_task("t2").in_loop("longer name")
    for mark, name in ((one, ("t1", "one")), (two, ("t2", "longer name")), (one, ("t1", "one"))):
        mark.enter()
        assert names(memory) == [name]
        mark.leave()
        assert names(memory) == []


def test_since_when_it_executes(memory: int, trail: StepTrail) -> None:
    mark = trail.in_loop("t", "step")
    mark.enter()
    (first,) = read_trail(memory)
    (second,) = read_trail(memory)
    assert 0 <= first.seconds <= second.seconds < 60
    mark.leave()
    mark.enter()
    (third,) = read_trail(memory)
    assert third.seconds <= second.seconds + 60


def test_steps_in_threads(memory: int, trail: StepTrail) -> None:
    began, go = threading.Barrier(4), threading.Event()

    def run(name: str) -> None:
        with trail.of_task(name).in_thread("step"):
            began.wait(10)
            go.wait(10)

    threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    began.wait(10)
    trail.in_loop("loop", "step").enter()
    found = read_trail(memory)
    assert found[0].is_in_loop
    assert sorted(step.task_id for step in found if not step.is_in_loop) == ["a", "b", "c"]
    go.set()
    for thread in threads:
        thread.join()
    assert names(memory) == [("loop", "step")]


def test_more_steps_than_slots(memory: int, trail: StepTrail) -> None:
    with ExitStack() as stack:
        for n in range(200):
            stack.enter_context(trail.in_thread(f"t{n}", "step"))
        found = names(memory)
        assert 10 < len(found) < 200
        assert len(set(found)) == len(found)
    assert names(memory) == []
    with trail.in_thread("later", "step"):
        assert names(memory) == [("later", "step")]


def test_a_step_that_raises_leaves_its_slot(memory: int, trail: StepTrail) -> None:
    for _ in range(200):
        with pytest.raises(ValueError, match="no"), trail.in_thread("t", "step"):
            raise ValueError("no")
    assert names(memory) == []


@pytest.mark.parametrize("name", ["x" * 10_000, "ü" * 5_000, "\ud800", ""])
def test_any_name(memory: int, trail: StepTrail, name: str) -> None:
    with trail.in_thread("before", "step"), trail.in_thread(name, "step"), trail.in_thread("after", "step"):
        trail.in_loop("task", name).enter()
        found = read_trail(memory)
    assert len(found) == 4
    assert {"before", "after"} < {step.task_id for step in found}
    assert all(len(step.task_id) + len(step.step_name) < 512 for step in found)
    assert found[0].task_id == "task"


def test_another_process_reads_it(memory: int, trail: StepTrail) -> None:
    trail.in_loop("t1", "step").enter()
    with trail.in_thread("t2", "step"):
        done = subprocess.run(
            [sys.executable, "-c", READER, str(memory)],
            pass_fds=(memory,),
            capture_output=True,
            text=True,
            check=True,
        )
    assert '"task_id": "t1"' in done.stdout
    assert '"task_id": "t2"' in done.stdout


def test_it_is_kept_when_the_descriptor_is_closed() -> None:
    memory = new_memory()
    read = os.dup(memory)
    trail = StepTrail(memory)
    os.close(memory)
    trail.in_loop("t", "step").enter()
    (found,) = read_trail(read)
    assert found == ExecutingStep("t", "step", found.seconds, is_in_loop=True)
    os.close(read)
