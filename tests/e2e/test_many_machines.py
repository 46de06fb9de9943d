"""Three control planes, eight workers, a broker and a database, each a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tests.figures import Tell
from tests.servers.brokers import DURABLE, Broker

from llama_deploy import Client
from llama_deploy.errors import UnavailableError
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import Program, free_port
from llama_deploy.types import TaskEvent

PLANES = 3
WORKERS = 8
CALLS = 1000
AT_ONCE = 50
READERS = 3
EVENTS = 5
CLIENTS_OF_ONE_KEY = 50
MEBIBYTE = 1024 * 1024
GROWTH_MEBIBYTES = 8.0
"""By how much a process may grow between the first third of the calls and the last."""
SUPERVISOR_MEBIBYTES = 35.0
"""How large a supervisor may be. It grows once, when it first sends a report."""

WORKFLOW = f"""
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Progress(Event):
    number: int


class Count(Workflow):
    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for number in range({EVENTS}):
            ctx.write_event_to_stream(Progress(number=number))
        return StopEvent(result=ev.name)


count = Count()
"""


@dataclass(frozen=True, slots=True)
class Machines:
    """The processes, and where the control planes are."""

    programs: Sequence[Program]
    urls: Sequence[str]

    def memory(self) -> dict[str, float]:
        """Return the resident memory in MiB of each control plane and of each process that runs the steps."""
        return {
            f"{program.output.stem}, process {each.pid}": mebibytes(each)
            for program in self.programs
            for each in children_of(program) or [psutil.Process(program.pid)]
        }

    def supervisors(self) -> dict[str, float]:
        """Return the resident memory of each supervisor in MiB."""
        return {
            program.output.stem: mebibytes(psutil.Process(program.pid))
            for program in self.programs
            if children_of(program)
        }


def children_of(program: Program) -> list[psutil.Process]:
    return psutil.Process(program.pid).children()


def mebibytes(process: psutil.Process) -> float:
    return float(process.memory_info().rss / MEBIBYTE)


@contextmanager
def machines(folder: Path, broker: Broker, store: str) -> Iterator[Machines]:
    """Run all processes, as one does on many machines."""
    (folder / "app.py").write_text(WORKFLOW)
    env = {
        "LLAMA_DEPLOY_QUEUE": broker.url,
        "CONTROL_PLANE_STATE_STORE_URI": store,
        "PYTHONPATH": str(folder),
    }
    ports = [free_port() for _ in range(PLANES)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    command = ["-m", "llama_deploy.cli"]
    with ExitStack() as stack:
        programs = [
            Program([*command, "serve", "--port", str(port)], output=folder / f"plane-{n}.log", env=env)
            for n, port in enumerate(ports)
        ]
        programs += [
            Program(
                [*command, "-s", urls[n % PLANES], "worker", "app:count"],
                output=folder / f"worker-{n}.log",
                env=env,
            )
            for n in range(WORKERS)
        ]
        yield Machines([stack.enter_context(program) for program in programs], urls)


async def all_at_work(client: Client) -> bool:
    try:
        services = await client.core.services.list()
    except UnavailableError:
        return False
    return sum(instance.alive for service in services for instance in service.instances) == WORKERS


async def read(client: Client, task_id: str) -> list[TaskEvent]:
    return [event async for event in client.task(task_id).events()]


async def call(clients: Sequence[Client], number: int) -> None:
    """Run one task at any control plane, read by one reader at each; all streams are complete and equal."""
    handle = await clients[number % PLANES].submit("count", name=f"call-{number}")
    streams = await asyncio.gather(*(read(client, handle.task_id) for client in clients[:READERS]))
    assert streams[0] == streams[1] == streams[2]
    assert [event.index for event in streams[0]] == list(range(EVENTS + 1))
    assert [event.data["number"] for event in streams[0][:-1]] == list(range(EVENTS))
    assert [event.terminal for event in streams[0]] == [False] * EVENTS + [True]
    assert await handle.result() == f"call-{number}"


async def call_all(clients: Sequence[Client], numbers: range) -> None:
    waiting = iter(numbers)

    async def caller() -> None:
        for number in waiting:
            await call(clients, number)

    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["nats", "rabbitmq"])
async def test_a_thousand_calls_over_many_machines(
    kind: str, tmp_path: Path, postgresql_uri: str, tell: Tell
) -> None:
    (tmp_path / "broker").mkdir()
    async with AsyncExitStack() as stack:
        broker = stack.enter_context(DURABLE[kind].make(tmp_path / "broker"))
        system = stack.enter_context(machines(tmp_path, broker, postgresql_uri))
        clients = [
            await stack.enter_async_context(Client(control_plane_url=url, timeout=60)) for url in system.urls
        ]
        await eventually(lambda: all_at_work(clients[0]), seconds=60)
        await one_key_is_one_task(stack, system.urls)
        third = CALLS // 3
        begun = time.monotonic()
        await call_all(clients, range(third))
        before = system.memory()
        await call_all(clients, range(third, CALLS))
        seconds = time.monotonic() - begun
        grown = {name: size - before[name] for name, size in system.memory().items()}
        supervisors = system.supervisors()
    tell(
        f"{CALLS} calls over {kind} with {READERS} readers each: {seconds:.1f} s, memory at most"
        f" {max(before.values()):.0f} MiB, grown by at most {max(grown.values()):.1f} MiB"
    )
    assert max(grown.values()) < GROWTH_MEBIBYTES, grown
    assert len(supervisors) == WORKERS
    assert max(supervisors.values()) <= SUPERVISOR_MEBIBYTES, supervisors


async def one_key_is_one_task(stack: AsyncExitStack, urls: Sequence[str]) -> None:
    """Clients at all control planes submit one task under one key at the same time: it is one task."""
    clients = [
        await stack.enter_async_context(Client(control_plane_url=url))
        for url in itertools.islice(itertools.cycle(urls), CLIENTS_OF_ONE_KEY)
    ]
    submissions = (client.submit("count", task_id="one-key", name="one") for client in clients)
    handles = await asyncio.gather(*submissions)
    assert {handle.session_id for handle in handles} == {handles[0].session_id}
    assert set(await asyncio.gather(*(handle.result() for handle in handles))) == {"one"}
    assert (await handles[0].info()).attempt == 1
    tasks = [task for session in await clients[0].core.sessions.list() for task in await session.get_tasks()]
    assert [task.task_id for task in tasks] == ["one-key"]
