"""What the workers of a process share."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from llama_deploy.services.worker.shared_process import ProcessMember, SharedProcess, this_process


@dataclass
class Worker:
    process: SharedProcess
    tasks: int = 0
    woken: int = 0
    member: ProcessMember = field(init=False)

    def __post_init__(self) -> None:
        self.member = ProcessMember(busy=lambda: self.tasks, wake=self.wake)
        self.process.join(self.member)

    def wake(self) -> None:
        self.woken += 1


def test_one_worker_at_a_time_has_the_process_for_itself() -> None:
    process = SharedProcess()
    one, other = Worker(process), Worker(process)
    assert not process.is_reserved
    assert process.reserve(one.member)
    assert process.reserve(one.member)
    assert not process.reserve(other.member)
    assert process.is_owned_by(one.member)
    process.release(other.member)
    assert process.is_reserved
    process.release(one.member)
    assert not process.is_reserved
    assert process.reserve(other.member)
    process.leave(other.member)
    assert not process.is_reserved


def test_the_process_is_idle_when_all_its_workers_are() -> None:
    process = SharedProcess()
    one, other = Worker(process, tasks=1), Worker(process, tasks=2)
    for worker in (one, other):
        assert not process.is_idle()
        worker.tasks = 0
    assert process.is_idle()
    other.tasks = 1
    process.leave(other.member)
    assert process.is_idle()


def test_who_waits_is_woken() -> None:
    process = SharedProcess()
    one, other = Worker(process), Worker(process)
    process.changed()
    assert (one.woken, other.woken) == (0, 0), "nobody waits"
    process.reserve(one.member)
    assert (one.woken, other.woken) == (1, 1), "they let runs leave memory that only wait"
    process.changed()
    assert (one.woken, other.woken) == (2, 1)
    process.release(one.member)
    assert (one.woken, other.woken) == (3, 2), "they take tasks again"


def test_a_forked_child_is_another_process() -> None:
    ours = this_process().id
    assert this_process().id == ours
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.write(writer, this_process().id.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    theirs = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    assert len(theirs) == len(ours)
    assert theirs != ours
