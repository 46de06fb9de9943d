"""What lists, counts, the inbox, submissions and the start cost with many ended tasks, against few of them.

Two stores of one kind have the same open tasks, and the same questions are open; one has many ended tasks
besides, each of which has asked something. The same reads, and the
same tasks, go to both in turns, so that a slow phase of the machine affects both. A ratio of 1 means that the
ended tasks cost nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from tests.integration.in_process import stop
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from benchmarks.servers import STORES
from llama_deploy.client import Client
from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.control_plane.requests.tasks.task_lists import TaskLists
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.postgresql_vacuum import vacuum_tables
from llama_deploy.state_stores.question_records import QuestionRecord
from llama_deploy.state_stores.records import ServiceRecord, SessionRecord, TaskRecord
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.types import SessionPolicy, TaskStatus, generate_id
from llama_deploy.types.owners import THE_DEFAULT_TENANT
from llama_deploy.types.questions import QuestionState
from llama_deploy.types.task_lists import TaskFilter

SERVICES: Final = 20
CHUNK: Final = 2000
BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
ENDED: Final = [status for status in TaskStatus if status.is_terminal]
OPEN: Final = [TaskStatus.PENDING, TaskStatus.WAITING]
PEOPLE: Final = ["ann", "ben", "cem", "dora"]
RESULT: Final = json.dumps({"task_id": "t", "status": "succeeded", "value": "x" * 200})


class Trivial(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - a step takes its event
        return StopEvent(result="ok")


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one thing, with few and with many ended tasks, in milliseconds."""

    name: str
    few: Sequence[float]
    many: Sequence[float]

    def __str__(self) -> str:
        columns = []
        for share in (0.5, 0.95):
            few, many = (quantile(values, share) for values in (self.few, self.many))
            columns.append(f"{few:9.3f} {many:9.3f} {many / few:6.2f}")
        return f"{self.name:34} " + "  ".join(columns)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def tasks(count: int, statuses: Sequence[TaskStatus], *, seed: int) -> list[TaskRecord]:
    """Return tasks of the services in random order, one a second."""
    chance = random.Random(seed)  # noqa: S311 - nothing is secret
    made = []
    for n in range(count):
        status = chance.choice(statuses)
        at = BEGIN + timedelta(seconds=n)
        made.append(
            TaskRecord(
                task_id=generate_id(),
                session_id=f"session-{n % 50}",
                service_name=f"service-{chance.randrange(SERVICES)}",
                input='{"topic": "tides"}',
                status=status,
                created_at=at,
                status_changed_at=at,
                max_attempts=3,
                finished_at=at if status.is_terminal else None,
                wake_at=BEGIN + timedelta(days=36500) if status is TaskStatus.WAITING else None,
                result=RESULT if status.is_terminal else None,
                tags=json.dumps([f"customer:{n % 5}"]) if n % 10 == 0 else "[]",
            )
        )
    return made


def question(task: TaskRecord) -> QuestionRecord:
    """Return what a task asks, or has asked."""
    return QuestionRecord(
        question_id=f"{task.task_id}:1",
        task_id=task.task_id,
        session_id=task.session_id,
        service_name=task.service_name,
        since=task.created_at,
        event_types='["app.Approval"]',
        prompt='{"text": "Publish it?"}',
        answer_schema='{"type": "object", "properties": {"approved": {"type": "boolean"}}}',
        state=QuestionState.ANSWERED if task.status.is_terminal else QuestionState.OPEN,
        assignee=PEOPLE[task.created_at.second % len(PEOPLE)],
        tags=task.tags,
    )


def _insert(tx: StoreTransaction, *, some: Sequence[TaskRecord]) -> None:
    tx.tasks.insert(some)
    tx.questions.insert(
        [question(task) for task in some if task.status.is_terminal or task.status is TaskStatus.WAITING]
    )


async def fill(store: StateStore, *, ended: int, opened: int) -> float:
    """Store the tasks; return how many seconds that took."""
    begun = time.perf_counter()
    sessions = [
        SessionRecord(f"session-{n}", SessionPolicy.PARALLEL, "{}", 0, BEGIN, BEGIN) for n in range(50)
    ]
    services = [
        ServiceRecord(f"service-{n}", json.dumps({"service_name": f"service-{n}", "description": ""}))
        for n in range(SERVICES)
    ]
    await store.transact(lambda tx: tx.sessions.insert(sessions))
    await store.transact(lambda tx: tx.services.put(services))
    everything = tasks(ended, ENDED, seed=1) + tasks(opened, OPEN, seed=2)
    random.Random(3).shuffle(everything)  # noqa: S311 - nothing is secret
    for start in range(0, len(everything), CHUNK):
        insert = partial(_insert, some=everything[start : start + CHUNK])
        await store.transact(insert, synced=False)
    return time.perf_counter() - begun


def reads(store: StateStore) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return the reads by name."""
    lists = TaskLists(store, lambda: datetime.now(UTC))
    filters = {
        "newest": TaskFilter(),
        "oldest": TaskFilter(order="oldest"),
        "status=failed": TaskFilter(status=(TaskStatus.FAILED,)),
        "status=waiting": TaskFilter(status=(TaskStatus.WAITING,)),
        "service": TaskFilter(service="service-7"),
        "service, status=failed": TaskFilter(service="service-7", status=(TaskStatus.FAILED,)),
        "session": TaskFilter(session="session-7"),
        "tag": TaskFilter(tag=("customer:0",)),
        "service, tag": TaskFilter(service="service-7", tag=("customer:0",)),
        "time": TaskFilter(created_after=BEGIN + timedelta(seconds=500)),
        "id prefix": TaskFilter(q="0"),
    }

    def page(wanted: TaskFilter) -> Callable[[], Awaitable[object]]:
        return lambda: lists.page(wanted, owner=THE_DEFAULT_TENANT, limit=20)

    def second_page(wanted: TaskFilter) -> Callable[[], Awaitable[object]]:
        async def read() -> object:
            first = await lists.page(wanted, owner=THE_DEFAULT_TENANT, limit=1)
            return await lists.page(wanted, owner=THE_DEFAULT_TENANT, limit=20, cursor=first.next_cursor)

        return read

    named: dict[str, Callable[[], Awaitable[object]]] = {
        f"list {name}": page(wanted) for name, wanted in filters.items()
    }
    named["list newest, further page"] = second_page(TaskFilter())
    named["count"] = lambda: lists.count(["status", "service"], owner=THE_DEFAULT_TENANT)
    asked: dict[str, dict[str, str]] = {
        "": {},
        ", service": {"service": "service-7"},
        ", assignee": {"assignee": PEOPLE[0]},
        ", tag": {"tag": "customer:0"},
        ", service, tag": {"service": "service-7", "tag": "customer:0"},
    }
    for name, by in asked.items():
        named[f"inbox{name}"] = partial(_inbox_page, store, **by)
    return named


async def _inbox_page(
    store: StateStore, *, service: str | None = None, assignee: str | None = None, tag: str | None = None
) -> object:
    return await store.read(
        lambda tx: tx.questions.page(service_name=service, assignee=assignee, tag=tag, limit=20)
    )


async def timed(work: Callable[[], Awaitable[object]], clock: Callable[[], float]) -> float:
    begun = clock()
    await work()
    return (clock() - begun) * 1000


async def measure_reads(
    few: StateStore, many: StateStore, *, rounds: int, clock: Callable[[], float]
) -> list[Row]:
    sides = [reads(few), reads(many)]
    rows = []
    for name in sides[0]:
        measured: tuple[list[float], list[float]] = ([], [])
        turns = list(zip(sides, measured, strict=True))
        for _ in range(rounds):
            for side, values in turns:
                values.append(await timed(side[name], clock))
            turns.reverse()  # what comes first finds other things in the processor's caches
        warm = rounds // 10
        rows.append(Row(name, measured[0][warm:], measured[1][warm:]))
    return rows


async def measure_tasks(uris: Sequence[str], *, rounds: int) -> list[Row]:
    """Measure the start of a control plane, submissions, and tasks one after the other and together."""
    starts: tuple[list[float], list[float]] = ([], [])
    for _ in range(5):
        for uri, values in zip(uris, starts, strict=True):
            begun = time.perf_counter()
            async with AsyncExitStack() as stack:
                await started(stack, uri)
                values.append((time.perf_counter() - begun) * 1000)
    submits: tuple[list[float], list[float]] = ([], [])
    whole: tuple[list[float], list[float]] = ([], [])
    together: tuple[list[float], list[float]] = ([], [])
    async with AsyncExitStack() as stack:
        clients = []
        for uri in uris:
            server, queue = await started(stack, uri)
            config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="trivial")
            service = WorkflowService(
                Trivial(), queue, config.model_copy(update={"max_concurrent_tasks": 64})
            )
            await service.register_to_control_plane(server.config.url)
            running = await service.launch_local()
            stack.push_async_callback(stop, running)
            clients.append(await stack.enter_async_context(Client(server.config.url)))
        for client in clients:
            await client.run("trivial")
        for _ in range(rounds):
            for client, submit, run in zip(clients, submits, whole, strict=True):
                begun = time.perf_counter()
                task = await client.submit("trivial")
                submit.append((time.perf_counter() - begun) * 1000)
                await task.result()
                run.append((time.perf_counter() - begun) * 1000)
        turns = list(zip(clients, together, strict=True))
        for _ in range(max(3, rounds // 5)):
            for client, values in turns:
                gc.collect()  # by itself, it would happen in every second burst, and take as long
                begun = time.perf_counter()
                await asyncio.gather(*(client.run("trivial") for _ in range(64)))
                values.append((time.perf_counter() - begun) * 1000 / 64)
            turns.reverse()
    return [
        Row("start", *starts),
        Row("submit", *submits),
        Row("submit and result", *whole),
        Row("a task of 64 together", *together),
    ]


async def started(stack: AsyncExitStack, uri: str) -> tuple[ControlPlaneServer, LocalMessageQueue]:
    store = await stack.enter_async_context(await open_state_store(uri))
    queue = await stack.enter_async_context(await LocalMessageQueue.start())
    # The ended tasks are old, and would be removed meanwhile.
    config = ControlPlaneConfig(
        port=0, state_store_uri=uri, retention_task_days="off", retention_event_days="off"
    )
    server = await stack.enter_async_context(ControlPlaneServer(queue, state_store=store, config=config))
    return server, queue


async def run(
    kind: str, *, ended: int, opened: int, rounds: int, clock: Callable[[], float], reads_only: bool
) -> None:
    with (
        tempfile.TemporaryDirectory() as first,
        tempfile.TemporaryDirectory() as second,
        STORES[kind](Path(first)) as few_uri,
        STORES[kind](Path(second)) as many_uri,
    ):
        async with await open_state_store(few_uri) as few, await open_state_store(many_uri) as many:
            await fill(few, ended=opened, opened=opened)
            seconds = await fill(many, ended=ended, opened=opened)
            if many.shared:  # what autovacuum does within minutes
                for uri in (few_uri, many_uri):
                    await vacuum_tables(uri)
            print(f"\n{kind}: {opened} ended against {ended} ended tasks, {opened} open ones in both;")
            print(f"filled in {seconds:.0f} s; milliseconds")
            print(f"{'':34} {'p50 few':>9} {'many':>9} {'ratio':>6}  {'p95 few':>9} {'many':>9} {'ratio':>6}")
            rows = await measure_reads(few, many, rounds=rounds, clock=clock)
            for row in rows:
                print(row)
        if not reads_only:
            for row in await measure_tasks([few_uri, many_uri], rounds=rounds):
                print(row)
        worst = max(quantile(row.many, 0.95) / quantile(row.few, 0.95) for row in rows)
        print(f"reads: the largest ratio at p95 is {worst:.2f}, the median of p50 ratios", end=" ")
        print(f"{statistics.median(quantile(r.many, 0.5) / quantile(r.few, 0.5) for r in rows):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=[*STORES, "all"], default="sqlite")
    parser.add_argument("--ended", type=int, default=200_000)
    parser.add_argument("--open", type=int, default=2_000, dest="opened")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument(
        "--cpu", action="store_true", help="Reads in CPU time of this process: for SQLite on a busy machine."
    )
    parser.add_argument("--reads-only", action="store_true")
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    for kind in STORES if options.store == "all" else [options.store]:
        asyncio.run(
            run(
                kind,
                ended=options.ended,
                opened=options.opened,
                rounds=options.rounds,
                clock=clock,
                reads_only=options.reads_only,
            )
        )


if __name__ == "__main__":
    main()
