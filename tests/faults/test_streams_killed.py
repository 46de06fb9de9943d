"""Readers that come and go read equal streams, while a control plane and an instance are killed.

Some of the readers are the `EventSource` of a browser.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llama_deploy import Client, NewAttempt
from llama_deploy.errors import UnavailableError
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import free_port
from llama_deploy.testing.tcp_proxy import TcpProxy
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.e2e.event_source import EventSources, event_sources, served_page
from tests.faults.conftest import System

pytestmark = pytest.mark.faults

READERS = 3
WORDS = 120
SOURCES = 4
"""So many streams are read by the browser too; it opens at most six to one control plane."""
LONG = 700
"""So many words are packed while they are streamed."""
SECONDS = 6.0


@dataclass
class Reader:
    """Reads a stream as a browser does, at any control plane, and goes away after some events."""

    task_id: str
    planes: Sequence[HttpConnection]
    chosen: random.Random
    events: list[dict[str, Any]] = field(default_factory=list)
    markers: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By attempt: each may be told again after a reconnection."""
    misplaced: list[int] = field(default_factory=list)
    connections: int = 0

    async def read(self) -> None:
        while not (self.events and self.events[-1]["terminal"]):
            self.connections += 1
            try:
                await self.read_some(self.chosen.randint(1, 60))
            except UnavailableError:
                await asyncio.sleep(0.05)

    async def read_some(self, count: int) -> None:
        headers = {"Accept": "text/event-stream"}
        if self.events:
            headers["Last-Event-ID"] = str(self.events[-1]["index"])
        request = HttpRequest("GET", f"/tasks/{self.task_id}/events", headers=headers, timeout=20)
        async with self.chosen.choice(self.planes).stream(request) as lines, aclosing(lines):
            left = count
            async for message in messages(lines):
                self.take(message)
                left -= "id" in message
                if not left:
                    return

    def take(self, message: dict[str, str]) -> None:
        if message.get("event") == "attempt":
            marker = json.loads(message["data"])
            if marker["attempt"] not in self.markers and marker["position"] != len(self.events):
                self.misplaced.append(marker["attempt"])
            self.markers[marker["attempt"]] = marker
        elif "id" in message:
            event = json.loads(message["data"])
            assert message["id"] == str(event["index"])
            self.events.append(event)


async def messages(lines: AsyncIterator[bytes]) -> AsyncIterator[dict[str, str]]:
    message: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.decode().partition(": ")
            message[name] = value
        else:
            yield message
            message = {}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("streams", [16, pytest.param(50, marks=pytest.mark.long)])
async def test_readers_that_come_and_go_read_equal_streams_while_processes_are_killed(
    system: System, postgresql_uri: str, tmp_path: Path, streams: int
) -> None:
    other_port = free_port()
    system.env["CONTROL_PLANE_STATE_STORE_URI"] = postgresql_uri
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "2"
    urls = [system.url, f"http://127.0.0.1:{other_port}"]
    planes = [HttpConnection(url) for url in urls]
    chosen = random.Random(1)  # noqa: S311 - not a secret
    async with AsyncExitStack() as stack:
        origin = stack.enter_context(served_page())
        system.env["CONTROL_PLANE_CORS_ORIGINS"] = origin
        system.start("core.py", "message_queue")
        first = system.start("core.py", "control_plane")
        system.start("core.py", "control_plane", CONTROL_PLANE_PORT=str(other_port))
        # Instances know one address too. It must live on: the tasks of the killed instance go on meanwhile.
        balancer = await stack.enter_async_context(TcpProxy())
        port = await balancer.start(system.control_plane_port, other_port)
        instances = [system.start("answers.py", CONTROL_PLANE_PORT=str(port)) for _ in range(2)]
        sources = await stack.enter_async_context(event_sources(tmp_path, origin))
        client = await stack.enter_async_context(Client(urls, timeout=60))
        await system.instances(client, 2, "answers")
        handles = [
            await client.submit("answers", words=LONG if n < 3 else WORDS, seconds=SECONDS)
            for n in range(streams)
        ]
        # The browser knows one address: that of the control plane that is killed, and comes back.
        read_in_browser = [handle.task_id for handle in handles[:: streams // SOURCES][:SOURCES]]
        await sources.open(*(f"{system.url}/tasks/{task_id}/events" for task_id in read_in_browser))
        readers = [
            Reader(handle.task_id, planes, random.Random(n))  # noqa: S311 - as above
            for handle in handles
            for n in range(READERS)
        ]
        reading = [asyncio.create_task(reader.read()) for reader in readers]
        await eventually(lambda: any(len(reader.events) > WORDS // 4 for reader in readers), seconds=60)
        await eventually(lambda: sources.have(1), seconds=60)
        first.kill()
        chosen.choice(instances).kill()
        await eventually(lambda: sum(len(reader.events) > WORDS // 3 for reader in readers) > 20, seconds=60)
        first.start()
        await asyncio.gather(*reading)
        await eventually(sources.are_closed, seconds=60)
        readers += await browser_readers(sources, read_in_browser, planes)
        fresh = {}
        for handle in handles:
            items = [item async for item in handle.events(attempts=True)]
            fresh[handle.task_id] = items
            assert (await handle.result()).count("word-") in (WORDS, LONG)
    for plane in planes:
        await plane.close()
    assert sum(reader.connections for reader in readers) > 3 * len(readers)
    assert sum(judged(reader, fresh[reader.task_id]) for reader in readers), "no attempt has taken over"


async def browser_readers(
    sources: EventSources, task_ids: Sequence[str], planes: Sequence[HttpConnection]
) -> list[Reader]:
    """Return what the browser has read, after it came back, to be judged as the other readers are."""
    readers = []
    for task_id, log in zip(task_ids, await sources.logs(), strict=True):
        reader = Reader(task_id, planes, random.Random(), connections=len(log.opened))  # noqa: S311 - unused
        for message in log.messages:
            reader.take(message)
        assert reader.connections > 1, f"the browser has not come back to {log.url}"
        readers.append(reader)
    return readers


def judged(reader: Reader, items: Sequence[Any]) -> int:
    """Return how many attempts a reader was told of; it must have read what is stored.

    Args:
        reader: One that has come and gone.
        items: The task's events and attempts, as one reads them in the end.
    """
    assert [event["index"] for event in reader.events] == list(range(len(reader.events)))
    stored = [item.model_dump() for item in items if not isinstance(item, NewAttempt)]
    assert reader.events == stored
    markers = {item.attempt: item.model_dump() for item in items if isinstance(item, NewAttempt)}
    assert reader.markers == markers
    assert not reader.misplaced
    written = discarded(items)
    assert [each for each in written if each != "plan"] == [f"word-{n} " for n in range(len(written) - 1)]
    return len(markers)


def discarded(items: Sequence[Any]) -> list[str]:
    """Return the words that a page shows in the end which discards what comes again."""
    shown: list[Any] = []
    for item in items:
        if isinstance(item, NewAttempt):
            shown = [event for event in shown if not item.repeats(event)]
        elif item.type == "Written":
            shown.append(item)
    return [event.data["delta"] for event in shown]
