"""The memory of a control plane does not grow with what it stores."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from llama_deploy import Client
from llama_deploy.errors import UnavailableError
from llama_deploy.services.gateway import HttpGateway
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import (
    EventRecord,
    InstanceRecord,
    JournalRecord,
    RunHeadRecord,
    ServiceRecord,
)
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.types import ServiceDefinition, TaskStatus
from llama_deploy.types.instance_protocol import AttemptPart, ClaimRequest, PartRequest
from tests.faults.conftest import System
from tests.figures import Tell

EVENTS: Final = 40
EVENT_BYTES: Final = 3_900_000
ACCEPTED: Final = ("application/x-ndjson", "text/event-stream") * 2
MEBIBYTE: Final = 2**20
CLAIMS: Final = 20
VALUE_BYTES: Final = 8_000_000
READERS: Final = 60
BODIES: Final = 120
BODY: Final = json.dumps({"service_name": "none", "arguments": {"text": "x" * 3_900_000}}).encode()


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


async def store_stream(uri: str, count: int = EVENTS) -> None:
    """Store a task that has ended and has streamed much."""

    def begin(tx: StoreTransaction) -> None:
        tx.sessions.insert([a_session()])
        ended = a_task(status=TaskStatus.SUCCEEDED)
        tx.tasks.insert([ended._replace(stream_length=count, finished_at=NOW, result="{}")])

    def insert(events: list[EventRecord], tx: StoreTransaction) -> None:
        tx.events.insert(events)

    async with await open_state_store(uri) as store:
        await store.transact(begin)
        for n in range(count):
            event = EventRecord(
                "t1", n, "Text", '{"text":"' + "x" * EVENT_BYTES + '"}', terminal=n == count - 1
            )
            await store.transact(partial(insert, [event]))


class SlowReader:
    """Reads nothing of a stream until it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int, accept: str, *, buffer: int | None = None) -> SlowReader:
        receiver = socket.socket()
        if buffer is not None:  # how much the system keeps for it
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        receiver.setblocking(False)
        await asyncio.get_running_loop().sock_connect(receiver, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=receiver, limit=65536)
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


async def test_many_readers_share_the_memory_for_pages(system: System, tell: Tell) -> None:
    await store_stream(system.env["CONTROL_PLANE_STATE_STORE_URI"], count=3)
    core = system.start("core.py")
    async with system.client() as client:
        await eventually(lambda: answers(client), seconds=60)
    before = peak_mib(core.pid)
    port = system.control_plane_port
    readers = [await SlowReader.connect(port, ACCEPTED[0], buffer=65536) for _ in range(READERS)]
    sizes = await asyncio.gather(*(reader.read_all() for reader in readers))
    grown = peak_mib(core.pid) - before
    tell(f"a control plane grew by {grown:.0f} MiB for {READERS} readers of large events")
    assert min(sizes) > 3 * EVENT_BYTES
    assert grown < 180  # a page of each takes 223


async def post(port: int) -> bytes:
    """Post a large task for a service that does not exist, and return the status line of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = ["POST /tasks HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", "Connection: close"]
    writer.write("".join(f"{line}\r\n" for line in [*lines, f"Content-Length: {len(BODY)}", ""]).encode())
    for start in range(0, len(BODY), MEBIBYTE):
        writer.write(BODY[start : start + MEBIBYTE])
        await writer.drain()
    status = await reader.readline()
    await reader.read()
    writer.close()
    return status


async def test_large_bodies_at_the_same_time_share_little_memory(system: System, tell: Tell) -> None:
    core = system.start("core.py")
    async with system.client() as client:
        await eventually(lambda: answers(client), seconds=60)
    before = peak_mib(core.pid)
    answered = await asyncio.gather(*(post(system.control_plane_port) for _ in range(BODIES)))
    grown = peak_mib(core.pid) - before
    tell(f"a control plane grew by {grown:.0f} MiB for {BODIES} large bodies at the same time")
    assert [status.split()[1] for status in answered] == [b"404"] * BODIES
    assert grown < 240  # of 446, which take more than twice as much when they are decoded


async def store_attempts(uri: str, fill: str) -> None:
    """Store tasks that an instance may claim, each with one large value."""
    text = json.dumps({"text": "x" * VALUE_BYTES})

    def begin(tx: StoreTransaction) -> None:
        tx.services.put(
            [ServiceRecord("greeter", ServiceDefinition(service_name="greeter").model_dump_json())]
        )
        expires = datetime.now(UTC) + timedelta(hours=1)
        tx.instances.put([InstanceRecord("i1", "greeter", None, None, NOW, expires)])

    def insert(n: int, tx: StoreTransaction) -> None:
        session, task = a_session(f"s{n}"), a_task(f"t{n}", session_id=f"s{n}", status=TaskStatus.QUEUED)
        if fill == "run":
            task = task._replace(has_run=True, journal_length=2)
            tx.runs.put([RunHeadRecord(task.task_id, "f", "1", state=text)])
        elif fill == "journal":
            task = task._replace(has_run=True, journal_length=2)
            tx.runs.put([RunHeadRecord(task.task_id, "f", "1")])
            tx.runs.insert_journal(
                [JournalRecord(task.task_id, n, text[: VALUE_BYTES // 2]) for n in range(2)]
            )
        elif fill == "input":
            task = task._replace(input=text)
        else:
            session = session._replace(state=text)
        tx.sessions.insert([session])
        tx.tasks.insert([task])

    async with await open_state_store(uri) as store:
        await store.transact(begin)
        for n in range(CLAIMS):
            await store.transact(partial(insert, n))


@pytest.mark.parametrize("fill", ["run", "journal", "input", "session_state"])
async def test_claims_together_read_little(system: System, tell: Tell, fill: str) -> None:
    await store_attempts(system.env["CONTROL_PLANE_STATE_STORE_URI"], fill)
    core = system.start("core.py")
    async with system.client() as client:
        await eventually(lambda: answers(client), seconds=60)
    before = peak_mib(core.pid)
    gateway = HttpGateway(system.url)
    claims = [ClaimRequest(task_id=f"t{n}", attempt=1, instance_id="i1") for n in range(CLAIMS)]
    replies = await asyncio.gather(*map(gateway.claim, claims))
    parts = [
        PartRequest(task_id=f"t{n}", attempt=1, token=reply.token, part=part)
        for n, reply in enumerate(replies)
        for part in reply.omitted
    ]
    slices = await asyncio.gather(*map(gateway.part, parts))
    await gateway.close()
    assert min(each.size for each in slices) >= VALUE_BYTES
    grown = peak_mib(core.pid) - before
    tell(
        f"a control plane grew by {grown:.0f} MiB for {CLAIMS} claims with a large {fill} each, then fetched"
    )
    assert [reply.granted for reply in replies] == [True] * CLAIMS
    part = "run" if fill == "journal" else fill
    assert [reply.omitted.count(AttemptPart(part)) for reply in replies].count(1) >= CLAIMS - 1
    assert grown < CLAIMS * VALUE_BYTES / MEBIBYTE
