"""Who is to blame when a process dies: the rules, and whole lives of many tasks in simulated processes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, TypeAlias

import pytest

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.decisions import deaths, lifecycle
from llama_deploy.control_plane.decisions.deaths import Blame, Waiting, asked, judge, judged_at
from llama_deploy.control_plane.decisions.transitions import Transition
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import SUSPECT_DEATHS, TaskRecord
from llama_deploy.testing.records import a_task
from llama_deploy.types import TaskResult, TaskStatus
from llama_deploy.types.instance_protocol import AttemptOutcome

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BACKOFF = Backoff(1.0, longest=3.0)
LEASE = timedelta(seconds=6)
Versions: TypeAlias = frozenset[str | None]


def blame_of(*names: str, waiting: Waiting | None = None, **options: Any) -> dict[str, str]:
    found = judge([a_task(name) for name in names], waiting=waiting or {}, **options)
    return {name: blame.name for name, blame in found.items()}


def test_a_task_that_was_alone_is_charged() -> None:
    assert blame_of("t") == {"t": "CHARGED"}


def test_of_several_tasks_none_is_charged() -> None:
    assert blame_of("t", "u", "v") == dict.fromkeys("tuv", "PRESENT")


def test_an_idle_process_has_nobody_to_blame() -> None:
    assert blame_of() == {}


def test_runs_that_only_wait_do_not_count() -> None:
    assert blame_of("t", "w", waiting={("w", 1): 0}) == {"t": "CHARGED", "w": "SPARED"}
    assert blame_of("t", "u", "w", waiting={("w", 1): 0}) == {"t": "PRESENT", "u": "PRESENT", "w": "SPARED"}
    assert blame_of("v", "w", waiting={("v", 1): 0, ("w", 1): 0}) == {"v": "SPARED", "w": "SPARED"}


def test_a_run_that_something_may_have_woken_is_not_one_that_waits() -> None:
    woken = a_task("w", inbox_length=2)
    assert judge([woken], waiting={("w", 1): 2}) == {"w": Blame.SPARED}
    assert judge([woken], waiting={("w", 1): 1}) == {"w": Blame.CHARGED}
    assert judge([woken._replace(attempt=2)], waiting={("w", 1): 2}) == {"w": Blame.CHARGED}


def test_of_known_culprits_only_they_are_charged() -> None:
    culprits = frozenset({"t", "ended"})
    assert blame_of("t", "u", culprits=culprits) == {"t": "CHARGED", "u": "SPARED"}
    assert blame_of("u", culprits=culprits) == {"u": "SPARED"}
    assert blame_of("t", "u", culprits=culprits, waiting={("t", 1): 0}) == {"t": "CHARGED", "u": "SPARED"}


def test_tasks_of_instances_that_live_on_are_neighbours() -> None:
    assert blame_of("t", neighbours=[a_task("u")]) == {"t": "PRESENT"}
    assert blame_of("t", neighbours=[]) == {"t": "CHARGED"}


def running(**changes: Any) -> TaskRecord:
    return a_task(status=TaskStatus.RUNNING, instance_id="i", token="t", claimed_at=NOW, **changes)


def moved(task: TaskRecord, blame: Blame, because: str | None = None) -> TaskRecord:
    return lifecycle.move_on(task, blame, at=NOW, backoff=BACKOFF, because=because).task


def test_a_task_that_was_present_at_two_deaths_is_a_suspect() -> None:
    task = running()
    for count in (1, 2):
        transition = lifecycle.move_on(task, Blame.PRESENT, at=NOW, backoff=BACKOFF)
        assert transition.dispatch, "it continues at once"
        task = transition.task
        assert (task.losses, task.deaths, deaths.is_suspect(task)) == (0, count, count == SUSPECT_DEATHS)
        task = lifecycle.claim(task, instance_id="i", attempt=task.attempt, token="t", at=NOW).task
    spared = moved(running(deaths=1), Blame.SPARED)
    assert (spared.losses, spared.deaths) == (0, 1)


def test_a_task_that_was_charged_twice_is_a_suspect() -> None:
    task = moved(running(losses=1, deaths=1), Blame.CHARGED)
    assert (task.losses, deaths.is_suspect(task), lifecycle.is_held_back(task)) == (2, True, True)


@pytest.mark.parametrize(("number", "words"), [(1, "1 process of service"), (3, "3 processes of service")])
def test_a_task_that_is_charged_too_often_fails_and_says_why(number: int, words: str) -> None:
    task = moved(
        running(losses=number - 1, max_attempts=number), Blame.CHARGED, because="was killed by SIGKILL"
    )
    assert task.status is TaskStatus.FAILED
    error = TaskResult.model_validate_json(text_of(task.result) or "").error
    assert error is not None
    assert f"{words} greeter ended in which this task was alone" in error.message
    assert error.message.endswith("was killed by SIGKILL")


def test_an_attempt_that_a_living_instance_does_not_hold_costs_nothing_at_first() -> None:
    task = running(max_attempts=1)
    for _ in range(SUSPECT_DEATHS):
        task = lifecycle.drop(task, at=NOW, backoff=BACKOFF).task
        assert (task.status, task.losses) == (TaskStatus.QUEUED, 0)
        task = lifecycle.claim(task, instance_id="i", attempt=task.attempt, token="t", at=NOW).task
    assert lifecycle.drop(task, at=NOW, backoff=BACKOFF).task.status is TaskStatus.FAILED


def test_an_instance_is_judged_when_the_others_of_its_process_are_over_but_soon() -> None:
    patience = LEASE / 2
    assert judged_at(NOW, [], patience=patience) == NOW
    assert judged_at(NOW, [NOW - LEASE], patience=patience) == NOW
    soon = NOW + LEASE / 3
    assert judged_at(NOW, [soon], patience=patience) == judged_at(soon, [NOW], patience=patience) == soon
    assert judged_at(NOW, [NOW + LEASE], patience=patience) == NOW + patience


def test_few_instances_are_asked_to_run_suspects_and_others_each_time() -> None:
    instances = {f"i{n}": "v" for n in range(50)}

    def chosen(suspects: int, *, alone: int = 0, turn: int = 1) -> list[str]:
        found = asked(instances, suspects={Versions("v"): suspects}, alone=["v"] * alone, turn=turn)
        assert set(found.values()) <= {suspects}
        return list(found)

    assert len(chosen(1)) == 1
    assert len(chosen(99)) == deaths.MAX_ALONE
    assert len(chosen(99, alone=1)) == deaths.MAX_ALONE - 1
    assert not chosen(1, alone=1)
    assert not chosen(0)
    assert dict(asked({"only": None}, suspects={Versions({None}): 9}, alone=[], turn=1)) == {"only": 9}
    turns = [tuple(chosen(1, turn=turn)) for turn in range(500)]
    assert len(set(turns)) > 40, "each has its turn"
    reverse = dict(reversed(instances.items()))
    assert turns[7] == tuple(asked(reverse, suspects={Versions("v"): 1}, alone=[], turn=7))


def test_only_instances_are_asked_that_fit_a_suspect() -> None:
    instances = {f"{version}-{n}": version for version in ("old", "new") for n in range(9)}
    nobody, old, new = Versions(), Versions({"old"}), Versions({"new"})
    both = old | new

    def versions(suspects: Mapping[Versions, int], *alone: str) -> list[str]:
        found = asked(instances, suspects=suspects, alone=alone, turn=1)
        return sorted(instances[each] for each in found)

    assert versions({nobody: 5, Versions({"gone"}): 5}) == []
    assert versions({old: 1}) == ["old"]
    assert versions({old: 9}) == ["old"] * deaths.MAX_ALONE
    assert versions({old: 1}, "new") == ["old"], "who runs others alone does not help it"
    assert versions({old: 1}, "old") == []
    assert versions({old: 1, new: 1}) == ["new", "old"]
    assert len(versions({both: 9})) == len(versions({both: 9, nobody: 9})) == deaths.MAX_ALONE
    assert len(versions({old: 3, both: 3})) == deaths.MAX_ALONE, "those that are asked help both"
    found = asked(instances, suspects={old: 1, both: 2, nobody: 4}, alone=[], turn=1)
    assert all(count == (3 if instances[each] == "old" else 2) for each, count in found.items())


# -- whole lives


@dataclass(eq=False)
class Job:
    """What a task does in each of its attempts, by seconds."""

    works: int
    kills: bool = False
    waits_first: bool = False
    """Whether it waits for an event before it works."""


@dataclass(eq=False)
class Process:
    """Hosts instances of all services, or one that runs suspects alone."""

    name: str
    services: tuple[str, ...]
    slots: int
    alone: bool = False
    running: dict[str, int] = field(default_factory=dict)
    """The tasks that it runs, with the seconds that each has worked."""
    waiting: set[str] = field(default_factory=set)
    heartbeat: dict[tuple[str, int], int] = field(default_factory=dict)
    """Which attempts waited at the last heartbeat."""
    drains_for: str | None = None
    """Of which service it runs a suspect alone, or is about to. None: it takes all tasks."""

    @property
    def busy(self) -> int:
        return len(self.running) - len(self.waiting)


class World:
    """Two processes with two services each, and what happens in them, second by second."""

    def __init__(self, random: Random, *, supervised: bool) -> None:
        self.random = random
        self.supervised = supervised
        self.now = NOW
        self.jobs: dict[str, Job] = {}
        self.tasks: dict[str, TaskRecord] = {}
        self.topics: defaultdict[tuple[str, bool], list[tuple[str, int]]] = defaultdict(list)
        self.processes = [self.new_process(), self.new_process()]
        self.deaths: Counter[int] = Counter()
        """How many processes have died, by how many tasks were working in them."""

    def new_process(self, alone: str | None = None) -> Process:
        name = f"p{self.random.random()}"
        return Process(name, (alone,) if alone else ("a", "b"), slots=1 if alone else 4, alone=bool(alone))

    def submit(self, name: str, job: Job, *, deaths: int = 0) -> None:
        self.jobs[name] = job
        task = a_task(name, session_id=name, service_name=self.random.choice("ab"), deaths=deaths)
        self.apply(lifecycle.take_turn(task, at=self.now))

    def apply(self, transition: Transition) -> None:
        task = transition.task
        self.tasks[task.task_id] = task
        if transition.dispatch:
            self.topics[task.target, deaths.is_suspect(task)].append((task.task_id, task.attempt))

    def tick(self) -> None:
        self.now += timedelta(seconds=1)
        for task in list(self.tasks.values()):
            if lifecycle.is_held_back(task) and task.redispatch_at and task.redispatch_at <= self.now:
                self.apply(lifecycle.dispatch_again(task))
        self.ask()
        self.random.shuffle(self.processes)
        for process in list(self.processes):
            self.beat(process)
            self.take(process)
            self.work(process)

    def ask(self) -> None:
        """Let suspects run alone, as heartbeats would."""
        for service in "ab":
            if not self.topics[service, True]:
                continue
            if self.supervised:
                if not any(each.alone and service in each.services for each in self.processes):
                    self.processes.append(self.new_process(alone=service))
            elif not any(each.drains_for == service for each in self.processes):
                free = [each for each in self.processes if each.drains_for is None]
                for each in free[:1]:
                    each.drains_for = service

    def beat(self, process: Process) -> None:
        if self.random.random() < 1 / 2:
            process.heartbeat = {
                (name, self.tasks[name].attempt): self.tasks[name].inbox_length for name in process.waiting
            }

    def take(self, process: Process) -> None:
        for service in process.services:
            alone = process.alone or process.drains_for == service
            if process.drains_for is not None and (process.busy or not alone):
                continue
            topic = self.topics[service, alone]
            while topic and process.busy < (1 if alone else process.slots):
                name, attempt = topic.pop(self.random.randrange(len(topic)))
                instance = f"{process.name}/{service}"
                claim = lifecycle.claim(
                    self.tasks[name], instance_id=instance, attempt=attempt, token="t", at=self.now
                )
                self.apply(claim)
                process.running[name] = 0
                if self.jobs[name].waits_first and not self.tasks[name].inbox_length:
                    process.waiting.add(name)
        if not process.busy and not self.topics[process.drains_for or "", True]:
            process.drains_for = None

    def work(self, process: Process) -> None:
        for name in sorted(process.running):
            job = self.jobs[name]
            if name in process.waiting:
                if self.random.random() < 1 / 4:  # the event comes, which the next attempt gets too
                    self.tasks[name] = self.tasks[name]._replace(inbox_length=1)
                    process.waiting.discard(name)
                continue
            process.running[name] += 1
            if process.running[name] >= job.works:
                if job.kills:
                    self.die(process)
                    return
                self.finish(process, name)
        if process.drains_for is not None and not process.busy:
            process.drains_for = None  # one at a time, then others

    def finish(self, process: Process, name: str) -> None:
        del process.running[name]
        task = self.tasks[name]
        outcome = AttemptOutcome(
            task_id=name, attempt=task.attempt, token="t", first=0, events=[], status=TaskStatus.SUCCEEDED
        )
        self.apply(lifecycle.end(task, outcome, at=self.now))

    def die(self, process: Process) -> None:
        self.deaths[process.busy] += 1
        held = [self.tasks[name] for name in process.running]
        blame = judge(held, waiting=process.heartbeat)
        for task in held:
            moved = lifecycle.move_on(
                task, blame[task.task_id], at=self.now, backoff=BACKOFF, because="was killed"
            )
            self.apply(moved)
        self.processes.remove(process)
        if not process.alone:
            self.processes.append(self.new_process())

    def live(self) -> None:
        for _ in range(5_000):
            for process in [each for each in self.processes if each.alone and not each.running]:
                if not self.topics[process.services[0], True]:
                    self.processes.remove(process)  # it has been idle
            if all(task.status.is_terminal for task in self.tasks.values()):
                return
            self.tick()
        raise AssertionError(f"not ended: {[each for each in self.tasks.values() if not each.finished_at]}")


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize("poisons", [1, 2])
def test_no_innocent_is_charged_in_any_order_of_arrival(poisons: int, *, supervised: bool) -> None:
    died: Counter[int] = Counter()
    for seed in range(200):
        random = Random(f"{seed} {poisons} {supervised}")  # noqa: S311
        world = World(random, supervised=supervised)
        jobs = [(f"innocent {n}", Job(random.randint(1, 30))) for n in range(random.randint(0, 10))]
        jobs += [(f"waits {n}", Job(random.randint(1, 9), waits_first=True)) for n in range(3)]
        jobs += [("suspect", Job(random.randint(1, 30)))]
        for n in range(poisons):
            poison = Job(random.randint(1, 9), kills=True, waits_first=random.random() < 1 / 4)
            jobs.append((f"poison {n}", poison))
        random.shuffle(jobs)
        for name, job in jobs:
            world.submit(name, job, deaths=SUSPECT_DEATHS if name == "suspect" else 0)
            for _ in range(random.choice([0, 0, 1, 5])):
                world.tick()
        world.live()
        for name, task in world.tasks.items():
            assert (task.status, task.losses) == (
                (TaskStatus.FAILED, task.max_attempts)
                if world.jobs[name].kills
                else (TaskStatus.SUCCEEDED, 0)
            ), (seed, name)
        died += world.deaths
    assert died[1] > 200 * poisons
    assert sum(count for busy, count in died.items() if busy > 1) > 200, "most had neighbours at first"
