"""The leases of an instance."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from llama_deploy.errors import UnavailableError
from llama_deploy.services.worker.held_attempts import HeldAttempts
from llama_deploy.services.worker.lease_keeper import LeaseKeeper
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.services.worker.worker_settings import WorkerSettings
from llama_deploy.types.instance_protocol import Heartbeat, HeartbeatReply, HeldAttempt
from llama_deploy.types.services import Registration


class Answers:
    """Answers heartbeats while the test allows it, with what the test says."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.known = True
        self.stale: list[HeldAttempt] = []
        self.beats: list[Heartbeat] = []
        self.registered = asyncio.Event()
        self.processed = asyncio.Event()

    def beat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        self.beats.append(heartbeat)
        if not self.open.is_set():
            raise UnavailableError("away")
        return HeartbeatReply(at=datetime.now(UTC), known=self.known, stale=self.stale)

    async def register(self) -> None:
        self.registered.set()


@asynccontextmanager
async def keeping(answers: Answers, ledger: Ledger) -> AsyncIterator[LeaseKeeper]:
    settings = WorkerSettings(
        service_name="service",
        instance_id="instance",
        registration=Registration(lease_seconds=0.1),
        max_concurrent_tasks=1,
        drain_timeout=1.0,
    )
    keeper = LeaseKeeper(
        settings=settings,
        beat=answers.beat,
        ledger=ledger,
        attempts=HeldAttempts(),
        register=answers.register,
        on_reply=lambda _: answers.processed.set(),
    )
    keeper.start()
    try:
        yield keeper
    finally:
        await keeper.close()
        await keeper.close()


async def test_steps_wait_until_the_lease_is_renewed() -> None:
    answers = Answers()
    answers.open.clear()
    async with asyncio.timeout(10), keeping(answers, Ledger()) as keeper:
        await keeper.hold()
        await asyncio.sleep(0.15)  # longer than the lease
        holding = asyncio.create_task(keeper.hold())
        await asyncio.sleep(0)
        assert not holding.done()
        answers.open.set()
        await holding


async def test_heartbeats_list_what_is_held_until_it_is_stale() -> None:
    answers, ledger = Answers(), Ledger()
    ledger.hold("task", 1)
    answers.stale = [HeldAttempt(task_id="task", attempt=1)]
    async with asyncio.timeout(10), keeping(answers, ledger):
        await answers.processed.wait()
        assert len(ledger) == 0
    assert answers.beats[0].held == answers.stale
    first = answers.beats[0]
    assert (first.instance_id, first.slots, first.running, first.blocked_seconds) == ("instance", 1, 0, 0.0)


async def test_an_instance_that_is_not_known_registers_again() -> None:
    answers = Answers()
    answers.known = False
    async with asyncio.timeout(10), keeping(answers, Ledger()):
        await answers.registered.wait()
