"""How long tasks take to be accepted while old ones are removed: `python -m benchmarks.retention`.

One process, a SQLite file with `synchronous=FULL`. Tasks are accepted at a fixed rate, in windows with and
without removal in turns, until all old tasks are removed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import describe_machine
from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.control_plane.maintenance.storage import Storage
from llama_deploy.control_plane.storage.removed_ids import KnownRemovals
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.message_queues.base import Subscription
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.records import a_session, a_task
from llama_deploy.types import ServiceDefinition, TaskStatus, TaskSubmission
from llama_deploy.types.ids import generate_id

MAX_RATIO: Final = 1.3
"""How much larger p95 may be while tasks are removed."""
QUIET_SHARE: Final = 1 / 3
"""How long a window without removal is, as a share of one with it."""
PAGE: Final = 500
EVENTS: Final = 3
EVENT: Final = json.dumps({"token": "x" * 300})
SERVICE: Final = "benchmark"


def now() -> datetime:
    return datetime.now(UTC)


def fill(count: int) -> Callable[[StoreTransaction], None]:
    ended_at = now() - timedelta(days=31)
    created_at = ended_at - timedelta(minutes=1)
    names = [generate_id() for _ in range(count)]

    def work(tx: StoreTransaction) -> None:
        tx.sessions.insert([a_session(name)._replace(created_at=created_at) for name in names])
        tx.tasks.insert(
            [
                a_task(
                    name,
                    session_id=name,
                    status=TaskStatus.SUCCEEDED,
                    created_at=created_at,
                    status_changed_at=ended_at,
                    finished_at=ended_at,
                    stream_length=EVENTS,
                    result="{}",
                )
                for name in names
            ]
        )
        tx.events.insert(
            [
                EventRecord(name, n, "Token", EVENT, terminal=n == EVENTS - 1)
                for name in names
                for n in range(EVENTS)
            ]
        )

    return work


class Load:
    """Accepts tasks at a fixed rate, whatever the answers do."""

    def __init__(self, server: ControlPlaneServer, *, rate: float) -> None:
        self._plane = server.plane
        self._rate = rate
        self._under_way: set[asyncio.Task[None]] = set()

    async def window(self, seconds: float) -> list[float]:
        """Return how many seconds each acceptance of a window took, from when it was due."""
        taken: list[float] = []
        begun = time.perf_counter()
        for n in range(int(seconds * self._rate)):
            due = begun + n / self._rate
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            task = asyncio.create_task(self._accept(due, taken))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        await asyncio.gather(*self._under_way)
        return taken

    async def _accept(self, due: float, taken: list[float]) -> None:
        await self._plane.tasks.submit(TaskSubmission(service_name=SERVICE, arguments={"name": "x"}))
        taken.append(time.perf_counter() - due)


async def drain(subscription: Subscription) -> None:
    """Take what is sent to the service, so that the queue does not fill."""
    while True:
        for delivery in await subscription.receive(500):
            await delivery.ack()


def percentile(values: list[float], share: int) -> float:
    return statistics.quantiles(values, n=100)[share - 1]


async def measure(folder: Path, *, tasks: int, rate: float, window: float) -> dict[str, Any]:
    config = ControlPlaneConfig(
        port=0,
        retention_task_days="off",
        retention_event_days="off",
        redispatch_seconds=100_000,
        max_queued_tasks=10_000_000,
    )
    path = folder / "state.db"
    async with (
        await SQLiteStateStore.connect(f"sqlite:///{path}") as store,
        await LocalMessageQueue.start() as queue,
        ControlPlaneServer(queue, state_store=store, config=config) as server,
        await queue.subscribe(f"llama_deploy.{SERVICE}") as work,
    ):
        await server.plane.services.register(ServiceDefinition(service_name=SERVICE, instance_id="none"))
        draining = asyncio.create_task(drain(work))
        for start in range(0, tasks, PAGE):
            await store.transact(fill(min(PAGE, tasks - start)))
        full = (await store.sizes()).total_bytes
        removal = Storage(store, ControlPlaneConfig(), removals=KnownRemovals(), clock=now).retention
        load = Load(server, rate=rate)
        await load.window(window / 2)  # caches
        without: list[float] = []
        during: list[float] = []
        busy = 0.0
        ratios: list[float] = []
        is_over = False
        while not is_over:
            quiet = await load.window(window * QUIET_SHARE)
            sweeping = asyncio.create_task(removal.sweep())
            begun = time.perf_counter()
            loaded = await load.window(window)
            is_over = sweeping.done()
            if not is_over:
                busy += time.perf_counter() - begun
                sweeping.cancel()
                with suppress(asyncio.CancelledError):
                    await sweeping
                ratios.append(percentile(loaded, 95) / percentile(quiet, 95))
                without += quiet
                during += loaded
            found = await store.read(
                lambda tx: tx.retention.ended(TaskStatus.SUCCEEDED, before=now(), limit=1)
            )
            is_over = is_over or not found
        await removal.sweep()
        sizes = await store.sizes()
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
    return {
        "tasks_removed": tasks,
        "accepted_per_second": rate,
        "removed_per_second": round(tasks / busy, 1) if busy else None,
        "windows": len(ratios),
        "without": {f"p{share}_ms": round(1000 * percentile(without, share), 2) for share in (50, 95, 99)},
        "during": {f"p{share}_ms": round(1000 * percentile(during, share), 2) for share in (50, 95, 99)},
        "p95_ratio": round(percentile(during, 95) / percentile(without, 95), 3),
        "p95_ratio_of_windows_median": round(statistics.median(ratios), 3),
        "bytes_before": full,
        "bytes_after_with_new_tasks": sizes.total_bytes,
        "bytes_of_closed_file": path.stat().st_size,
        "load_average": os.getloadavg(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000, help="how many old tasks are removed")
    parser.add_argument("--rate", type=float, default=500.0, help="how many tasks are accepted per second")
    parser.add_argument(
        "--window",
        type=float,
        default=10.0,
        help="seconds with removal, in turns with a third of that without",
    )
    parser.add_argument("--folder", type=Path, help="where the database is written; default: a temporary one")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = asyncio.run(
            measure(Path(folder), tasks=options.tasks, rate=options.rate, window=options.window)
        )
    print(json.dumps({**found, "machine": describe_machine(quick=False)}, indent=2, default=str))
    return 0 if found["p95_ratio"] <= MAX_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
