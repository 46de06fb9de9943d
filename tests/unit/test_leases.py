"""The leases of instances, with a clock that the tests move and sweeps that they begin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

import pytest

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.control_plane.decisions.dispatch_rules import DispatchPace
from llama_deploy.control_plane.dispatch.clock_watch import ClockWatch
from llama_deploy.control_plane.dispatch.dispatcher import Dispatcher
from llama_deploy.control_plane.dispatch.leases import Leases
from llama_deploy.control_plane.dispatch.pause_watch import PauseWatch
from llama_deploy.control_plane.dispatch.question_deadlines import QuestionDeadlines
from llama_deploy.control_plane.dispatch.sweep_loop import SweepLoop
from llama_deploy.control_plane.dispatch.timers import Timers
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.storage.unit import Committed
from llama_deploy.control_plane.storage.writer import Writer
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.orchestrators import SimpleOrchestrator
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import InstanceRecord, OutboxRecord, TaskRecord
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.records import NOW
from llama_deploy.types import BlockedStep, ServiceDefinition, TaskStatus, TaskSubmission
from llama_deploy.types.instance_protocol import ClaimRequest, Heartbeat, HeldAttempt, ProcessDeath
from llama_deploy.types.topics import Topics

T = TypeVar("T")

LEASE_SECONDS = 5.0
LEASE = timedelta(seconds=LEASE_SECONDS)
A_MOMENT = timedelta(seconds=0.1)


class WatchedStore(SQLiteStateStore):
    """Tells when something was read."""

    was_read: asyncio.Event

    async def read(self, work: Callable[[StoreTransaction], T]) -> T:
        found = await super().read(work)
        self.was_read.set()
        return found


class Scene:
    """A control plane whose sweeps the test begins, and the instance `i1` of the service `echo`."""

    def __init__(self, store: WatchedStore, queue: LocalMessageQueue) -> None:
        self.store = store
        self.now = NOW
        # Not started: it sweeps nothing by itself.
        self.plane = ControlPlane(
            queue=queue,
            store=store,
            config=ControlPlaneConfig(lease_seconds=LEASE_SECONDS),
            orchestrator=SimpleOrchestrator(),
            clock=self._clock,
        )
        self.writer = Writer(
            store,
            clock=self._clock,
            topics=Topics("test"),
            pace=DispatchPace(unclaimed=Backoff(10, longest=60), lost=Backoff(1, longest=60)),
            after_commit=self._note,
        )
        self._was_set = timedelta()
        self._pauses = PauseWatch(LEASE_SECONDS / 16, self._steady)
        self.leases = Leases(
            store=store,
            writer=self.writer,
            watch=ClockWatch(self._clock, self._steady),
            pauses=self._pauses,
            lease_seconds=LEASE_SECONDS,
        )
        self.dispatcher = Dispatcher(
            store=store, writer=self.writer, clock=self._clock, lease=LEASE, is_waiting=lambda _: False
        )
        self.timers = Timers(
            store=store,
            writer=self.writer,
            deadlines=QuestionDeadlines(self.writer),
            clock=self._clock,
        )
        self.committed: list[Committed] = []

    def _clock(self) -> datetime:
        return self.now

    def _steady(self) -> float:
        return (self.now - self._was_set).timestamp()

    def set_clock(self, by: timedelta) -> None:
        """Set the clock without letting time pass."""
        self.now += by
        self._was_set += by

    def let_pass(self, time: timedelta) -> None:
        """Let time pass in which the event loop is free."""
        until = self.now + time
        self._pauses.look()
        while self.now < until:
            self.now = min(until, self.now + timedelta(seconds=self._pauses.interval))
            self._pauses.look()

    def pause(self, time: timedelta) -> None:
        """Let time pass in which this process is stopped, or its event loop blocked."""
        self.now += time

    async def sweep(self) -> None:
        """Sweep everything, as the control plane does."""
        loop = SweepLoop(
            dispatcher=self.dispatcher,
            timers=self.timers,
            leases=self.leases,
            clock=self._clock,
            lease=LEASE,
            max_pause=LEASE,
        )
        await loop.sweep()

    def _note(self, committed: Committed) -> None:
        self.committed.append(committed)

    async def register(self, instance_id: str = "i1", process_id: str | None = None) -> None:
        await self.plane.services.register(
            ServiceDefinition(service_name="echo", instance_id=instance_id, process_id=process_id)
        )

    async def submit(self, task_id: str) -> None:
        await self.plane.tasks.submit(TaskSubmission(service_name="echo", task_id=task_id))

    async def claim(self, task_id: str, attempt: int, instance_id: str = "i1") -> None:
        (reply,) = await self.plane.attempts.claim(
            [ClaimRequest(task_id=task_id, attempt=attempt, instance_id=instance_id)]
        )
        assert reply.granted, reply.reason

    async def beat(
        self,
        *held: tuple[str, int],
        claiming: Sequence[tuple[str, int]] = (),
        instance_id: str = "i1",
        heard_at: datetime | None = None,
    ) -> list[tuple[str, int]]:
        """Send a heartbeat, and return the attempts that the instance is told to drop."""
        attempts = [HeldAttempt(task_id=task_id, attempt=attempt) for task_id, attempt in held]
        reply = await self.plane.services.heartbeat(
            Heartbeat(instance_id=instance_id, held=attempts, claiming=list(claiming), heard_at=heard_at)
        )
        assert reply.known
        return [(item.task_id, item.attempt) for item in reply.stale]

    async def task(self, task_id: str) -> TaskRecord:
        return (await self.store.read(lambda tx: tx.tasks.load([task_id])))[task_id]

    async def stands(self, task_id: str) -> tuple[TaskStatus, int]:
        task = await self.task(task_id)
        return task.status, task.attempt

    async def is_alive(self) -> bool:
        return (await self.plane.services.get("echo")).instances[0].alive

    async def lose(self, task_id: str) -> None:
        """Let the lease expire while the instance holds the first attempt of a task."""
        await self.submit(task_id)
        await self.claim(task_id, 1)
        self.let_pass(LEASE)
        await self.leases.sweep()
        assert await self.stands(task_id) == (TaskStatus.QUEUED, 2)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with (
        await LocalMessageQueue.start() as queue,
        await WatchedStore.connect("sqlite:///:memory:") as store,
    ):
        store.was_read = asyncio.Event()
        scene = Scene(store, queue)
        await scene.register()
        yield scene
        await scene.writer.close()
        await scene.plane.close()


async def test_what_an_instance_claims_after_its_lease_is_not_taken_from_it(scene: Scene) -> None:
    await scene.lose("t")
    scene.let_pass(10 * LEASE)
    await scene.claim("t", 2)
    await scene.leases.sweep()
    assert await scene.stands("t") == (TaskStatus.RUNNING, 2)
    assert await scene.is_alive()


async def test_a_claim_before_the_next_heartbeat_is_protected_for_a_whole_lease(scene: Scene) -> None:
    await scene.submit("t")
    scene.let_pass(LEASE - A_MOMENT)
    await scene.claim("t", 1)
    scene.let_pass(LEASE - A_MOMENT)
    await scene.leases.sweep()
    assert await scene.stands("t") == (TaskStatus.RUNNING, 1)


async def test_an_instance_that_only_claims_is_silent_a_lease_later(scene: Scene) -> None:
    await scene.lose("t")
    await scene.claim("t", 2)
    scene.let_pass(LEASE)
    await scene.leases.sweep()
    assert await scene.stands("t") == (TaskStatus.QUEUED, 3)


async def test_a_refused_claim_renews_nothing(scene: Scene) -> None:
    await scene.lose("t")
    (reply,) = await scene.plane.attempts.claim([ClaimRequest(task_id="t", attempt=1, instance_id="i1")])
    assert not reply.granted
    assert not await scene.is_alive()


async def test_a_second_silence_too_is_declared_only_after_a_grace_period(scene: Scene) -> None:
    await scene.lose("t")
    await scene.beat()
    await scene.claim("t", 2)
    scene.let_pass(LEASE)
    scene.store.was_read.clear()
    sweep = asyncio.create_task(scene.leases.sweep())
    await scene.store.was_read.wait()
    await scene.beat(("t", 2))  # it was on its way when the sweep began
    await sweep
    assert await scene.stands("t") == (TaskStatus.RUNNING, 2)


async def test_an_instance_that_is_heard_in_the_grace_period_is_alive_however_long_the_sweep_takes(
    scene: Scene,
) -> None:
    await scene.lose("t")
    await scene.beat()
    await scene.claim("t", 2)
    scene.let_pass(LEASE)
    scene.store.was_read.clear()
    sweep = asyncio.create_task(scene.leases.sweep())
    await scene.store.was_read.wait()
    await scene.beat(("t", 2))
    scene.let_pass(2 * LEASE)  # the sweep waits for its turn to write
    await sweep
    assert await scene.stands("t") == (TaskStatus.RUNNING, 2)


@pytest.mark.parametrize("pause", [LEASE / 3, LEASE, 100 * LEASE])
async def test_the_time_of_a_pause_counts_for_no_lease(scene: Scene, pause: timedelta) -> None:
    await scene.submit("t")
    await scene.claim("t", 1)
    scene.let_pass(LEASE / 3)
    scene.pause(pause)
    scene.let_pass(LEASE * 2 / 3 - A_MOMENT)
    await scene.sweep()
    assert await scene.stands("t") == (TaskStatus.RUNNING, 1)
    scene.let_pass(2 * A_MOMENT)
    await scene.sweep()
    assert await scene.stands("t") == (TaskStatus.QUEUED, 2)


async def test_a_lease_ends_although_the_process_is_paused_again_and_again(scene: Scene) -> None:
    await scene.submit("t")
    await scene.claim("t", 1)
    for _ in range(4):
        await scene.sweep()
        assert await scene.stands("t") == (TaskStatus.RUNNING, 1)
        scene.pause(2 * LEASE)
        scene.let_pass(LEASE / 4)
    await scene.sweep()
    assert await scene.stands("t") == (TaskStatus.QUEUED, 2)


async def test_an_instance_is_told_that_a_claim_without_an_answer_is_void(scene: Scene) -> None:
    await scene.submit("queued")
    await scene.lose("t")
    claiming = [("t", 1), ("t", 2), ("queued", 1), ("deleted", 1)]
    assert await scene.beat(claiming=claiming) == [("t", 1), ("deleted", 1)]
    await scene.claim("t", 2)
    assert await scene.beat(claiming=claiming) == [("t", 1), ("deleted", 1)]


class TestTheInstancesOfAProcess:
    @pytest.fixture(autouse=True)
    async def process(self, scene: Scene) -> None:
        """Two instances, each with a task."""
        for instance_id, task_id in (("i1", "t"), ("i2", "u")):
            await scene.register(instance_id, process_id="p")
            await scene.submit(task_id)
            await scene.claim(task_id, 1, instance_id)

    async def test_they_are_judged_together(self, scene: Scene) -> None:
        scene.let_pass(LEASE / 3)
        await scene.beat(("u", 1), instance_id="i2")
        scene.let_pass(LEASE * 2 / 3 + A_MOMENT)
        await scene.sweep()
        assert await scene.stands("t") == await scene.stands("u") == (TaskStatus.RUNNING, 1)
        scene.let_pass(LEASE / 3)
        await scene.sweep()
        for task_id in ("t", "u"):
            task = await scene.task(task_id)
            assert (task.status, task.losses, task.deaths) == (TaskStatus.QUEUED, 0, 1)

    async def test_one_waits_half_a_lease_for_the_others_which_are_neighbours(self, scene: Scene) -> None:
        for _ in range(4):
            assert await scene.stands("t") == (TaskStatus.RUNNING, 1)
            scene.let_pass(LEASE / 3)
            await scene.beat(("u", 1), instance_id="i2")
            await scene.sweep()
        assert await scene.stands("t") == (TaskStatus.RUNNING, 1)
        scene.let_pass(LEASE / 6 + A_MOMENT)
        await scene.sweep()
        task = await scene.task("t")
        assert (task.status, task.losses, task.deaths) == (TaskStatus.QUEUED, 0, 1)
        assert await scene.stands("u") == (TaskStatus.RUNNING, 1)

    async def test_a_neighbour_that_only_waits_does_not_count(self, scene: Scene) -> None:
        for _ in range(5):
            scene.let_pass(LEASE / 3)
            await scene.plane.services.heartbeat(
                Heartbeat(instance_id="i2", held=[HeldAttempt(task_id="u", attempt=1, waits=True)])
            )
            await scene.sweep()
        task = await scene.task("t")
        assert (task.status, task.losses, task.deaths) == (TaskStatus.QUEUED, 1, 1)
        assert await scene.stands("u") == (TaskStatus.RUNNING, 1)

    async def test_what_only_waits_is_known_after_an_instance_has_registered_again(
        self, scene: Scene
    ) -> None:
        await scene.plane.services.heartbeat(
            Heartbeat(instance_id="i2", held=[HeldAttempt(task_id="u", attempt=1, waits=True)])
        )
        await scene.register("i2", process_id="p")
        await scene.plane.deaths.report(ProcessDeath(instances=["i1", "i2"], reason="was killed"))
        assert (await scene.task("t")).losses == 1
        assert (await scene.task("u")).deaths == 0

    async def test_a_task_that_was_alone_is_charged(self, scene: Scene) -> None:
        await scene.plane.tasks.cancel("u")
        await scene.register("i3", process_id="another")
        scene.let_pass(LEASE)
        await scene.sweep()
        task = await scene.task("u")
        assert task.status is TaskStatus.CANCELLED
        task = await scene.task("t")
        assert (task.losses, task.deaths) == (0, 1), "a cancelled task may still run"
        await scene.claim("t", 2)
        scene.let_pass(LEASE)
        await scene.sweep()
        task = await scene.task("t")
        assert (task.losses, task.deaths) == (1, 2)


async def test_what_a_living_instance_has_told_is_kept_when_it_registers_again(scene: Scene) -> None:
    async def record() -> InstanceRecord:
        return (await scene.store.read(lambda tx: tx.instances.load(instance_ids=["i1"])))[0]

    await scene.register(process_id="p")
    step = BlockedStep(task_id="t", step="s", seconds=1.0, place="in f")
    held = [HeldAttempt(task_id="t", attempt=1, waits=True)]
    await scene.plane.services.heartbeat(
        Heartbeat(instance_id="i1", held=held, running=3, blocked=[step], alone=True)
    )
    told = await record()
    assert told.running == 3
    assert None not in (told.blocked, told.waiting)
    await scene.register(process_id="p")
    again = await record()
    assert again == told._replace(slots=None, last_heartbeat=again.last_heartbeat)
    await scene.plane.services.heartbeat(Heartbeat(instance_id="i1", slots=0))
    await scene.register(process_id="p")
    assert (await record()).slots == 0, "it drains"
    for gone_for, process_id in ((timedelta(), "another"), (LEASE, "another")):
        scene.let_pass(gone_for)
        await scene.register(process_id=process_id)
        new = await record()
        assert (new.running, new.blocked, new.waiting, new.alone) == (None, None, None, False)
        await scene.plane.services.heartbeat(Heartbeat(instance_id="i1", running=3))


async def test_an_attempt_that_a_living_instance_does_not_hold_is_not_charged(scene: Scene) -> None:
    await scene.submit("t")
    await scene.claim("t", 1)
    heard_at = scene.now + 2 * LEASE
    await scene.plane.services.heartbeat(Heartbeat(instance_id="i1", heard_at=heard_at))
    task = await scene.task("t")
    assert (task.status, task.attempt, task.losses) == (TaskStatus.QUEUED, 2, 0)


SOME_JUMPS = pytest.mark.parametrize("jump", [timedelta(seconds=30), timedelta(hours=1)])


@SOME_JUMPS
async def test_no_attempt_is_lost_because_the_clock_is_set_forward(scene: Scene, jump: timedelta) -> None:
    await scene.submit("t")
    await scene.claim("t", 1)
    await scene.sweep()
    scene.set_clock(jump)
    await scene.sweep()
    assert await scene.stands("t") == (TaskStatus.RUNNING, 1)
    assert await scene.is_alive()
    scene.let_pass(LEASE)
    await scene.sweep()
    assert await scene.stands("t") == (TaskStatus.QUEUED, 2)


@SOME_JUMPS
async def test_a_lease_ends_in_time_although_the_clock_is_set_back(scene: Scene, jump: timedelta) -> None:
    await scene.submit("t")
    await scene.claim("t", 1)
    await scene.sweep()
    scene.set_clock(-jump)
    await scene.sweep()
    assert await scene.stands("t") == (TaskStatus.RUNNING, 1)
    scene.let_pass(LEASE)
    await scene.sweep()
    assert await scene.stands("t") == (TaskStatus.QUEUED, 2)


@SOME_JUMPS
async def test_a_delayed_attempt_is_due_in_time_although_the_clock_is_set_back(
    scene: Scene, jump: timedelta
) -> None:
    await scene.lose("t")
    await scene.claim("t", 2)
    scene.let_pass(LEASE)
    await scene.leases.sweep()
    delayed = await scene.task("t")
    assert (delayed.attempt, delayed.dispatches) == (3, 0), "the second loss delays the next attempt"
    assert delayed.redispatch_at is not None
    delay = delayed.redispatch_at - scene.now
    scene.set_clock(-jump)
    await scene.sweep()
    assert (await scene.task("t")).dispatches == 0
    scene.let_pass(delay + A_MOMENT)
    await scene.sweep()
    assert (await scene.task("t")).dispatches == 1


BACK = pytest.mark.parametrize("jump", [timedelta(seconds=120), timedelta(hours=1)])


@BACK
async def test_a_parked_run_wakes_in_time_although_the_clock_is_set_back(
    scene: Scene, jump: timedelta
) -> None:
    await scene.submit("t")
    task = await scene.task("t")
    wake_at = scene.now + timedelta(seconds=60)
    parked = task._replace(status=TaskStatus.WAITING, redispatch_at=None, wake_at=wake_at)
    await scene.store.transact(lambda tx: tx.tasks.update([parked]))
    await scene.sweep()
    scene.set_clock(-jump)
    await scene.sweep()
    scene.let_pass(timedelta(seconds=59))
    await scene.sweep()
    assert (await scene.task("t")).status is TaskStatus.WAITING
    scene.let_pass(timedelta(seconds=2))
    await scene.sweep()
    assert (await scene.task("t")).status is TaskStatus.QUEUED


@BACK
async def test_a_claim_without_an_answer_is_released_in_time_although_the_clock_is_set_back(
    scene: Scene, jump: timedelta
) -> None:
    await scene.submit("t")
    await scene.claim("t", 1)
    await scene.sweep()
    scene.set_clock(-jump)
    await scene.sweep()
    await scene.beat(claiming=[("t", 1)], heard_at=scene.now)
    assert await scene.stands("t") == (TaskStatus.RUNNING, 1)
    for _ in range(4):
        heard_at = scene.now
        scene.let_pass(LEASE / 2)
        await scene.beat(heard_at=heard_at)
        await scene.sweep()
    assert await scene.stands("t") == (TaskStatus.QUEUED, 2)


@BACK
async def test_messages_of_others_are_taken_over_although_the_clock_was_set_back(
    scene: Scene, jump: timedelta
) -> None:
    left = OutboxRecord("m", "topic", "{}", scene.now + timedelta(seconds=2))
    await scene.store.transact(lambda tx: tx.outbox.insert([left]))
    scene.set_clock(-jump)
    until = scene.now + timedelta(seconds=5)
    taken = await scene.store.transact(lambda tx: tx.outbox.take(now=scene.now, until=until))
    assert [message.message_id for message in taken if message.topic == "topic"] == ["m"]
    again = await scene.store.transact(lambda tx: tx.outbox.take(now=scene.now, until=until))
    assert again == []
