"""The memory of a control plane does not grow with what it stores."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Final

from llama_deploy import Client
from llama_deploy.errors import UnavailableError
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.types import TaskStatus
from tests.faults.conftest import System
from tests.figures import Tell

EVENTS: Final = 40
EVENT_BYTES: Final = 3_900_000
ACCEPTED: Final = ("application/x-ndjson", "text/event-stream") * 2
MEBIBYTE: Final = 2**20


def peak_mib(pid: int) -> float:
    """Return the most memory that a process has used, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


async def answers(client: Client) -> bool:
    try:
        await client.core.services.list()
    except UnavailableError:
        return False
    return True


async def store_stream(uri: str) -> None:
    """Store a task that has ended and has streamed much."""

    def begin(tx: StoreTransaction) -> None:
        tx.sessions.insert([a_session()])
        ended = a_task(status=TaskStatus.SUCCEEDED)
        tx.tasks.insert([ended._replace(stream_length=EVENTS, finished_at=NOW, result="{}")])

    def insert(events: list[EventRecord], tx: StoreTransaction) -> None:
        tx.events.insert(events)

    async with await open_state_store(uri) as store:
        await store.transact(begin)
        for n in range(EVENTS):
            event = EventRecord(
                "t1", n, "Text", '{"text":"' + "x" * EVENT_BYTES + '"}', terminal=n == EVENTS - 1
            )
            await store.transact(partial(insert, [event]))


class SlowReader:
    """Reads nothing of a stream until it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int, accept: str) -> SlowReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=65536)
        lines = ["GET /tasks/t1/events HTTP/1.1", "Host: 127.0.0.1", f"Accept: {accept}", "Connection: close"]
        writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        return cls(reader, writer)

    async def read_all(self) -> int:
        """Return how many bytes there were."""
        size = 0
        while chunk := await self._reader.read(MEBIBYTE):
            size += len(chunk)
        self._writer.close()
        return size


async def test_readers_of_a_large_stream_share_little_memory(system: System, tell: Tell) -> None:
    await store_stream(system.env["CONTROL_PLANE_STATE_STORE_URI"])
    core = system.start("core.py")
    async with system.client() as client:
        await eventually(lambda: answers(client), seconds=60)
    before = peak_mib(core.pid)
    readers = [await SlowReader.connect(system.control_plane_port, accept) for accept in ACCEPTED]
    sizes = await asyncio.gather(*(reader.read_all() for reader in readers))
    grown = peak_mib(core.pid) - before
    tell(f"a control plane grew by {grown:.0f} MiB for {len(readers)} readers of {EVENTS} large events")
    assert min(sizes) > EVENTS * EVENT_BYTES
    assert grown < EVENTS * EVENT_BYTES / MEBIBYTE  # for all readers together, less than the stream
