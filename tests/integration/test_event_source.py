"""The browser's own `EventSource` reads a task's events, from an origin that the control plane allows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.tcp_proxy import TcpProxy
from llama_deploy.web.http_connection import HttpConnection
from tests.e2e.event_source import EventSources, SourceLog, event_sources, served_page
from tests.integration.conftest import Instance, get
from tests.integration.test_stream_attempts import TAKEOVER, half_written

PATIENCE = 60.0
RETRY_SECONDS = 1.0
"""As the stream asks for; without being asked, the browser waits for 3 s."""
BROWSER_RETRY_SECONDS = 3.0
MARKER = "attempt"


@pytest.fixture
def origin() -> Iterator[str]:
    """The origin of the page."""
    with served_page() as origin:
        yield origin


@pytest.fixture
def config(config: ControlPlaneConfig, origin: str) -> ControlPlaneConfig:
    return config.model_copy(update={"cors_origins": [origin]})


@pytest.mark.timeout(240)
async def test_a_browser_resumes_a_broken_stream_and_leaves_one_that_has_ended(
    tmp_path: Path, origin: str, http: HttpConnection, instance: Instance, proxy: TcpProxy
) -> None:
    port = await proxy.start(instance.server.config.port or 0)
    async with event_sources(tmp_path, origin) as sources:
        second = await half_written(http, instance)
        url = f"http://127.0.0.1:{port}/tasks/t/events"
        await sources.open(url, f"{url}?after=0")
        await eventually(lambda: have_received(sources, MARKER), seconds=PATIENCE)
        proxy.cut()
        await eventually(lambda: have_received(sources, MARKER, times=2), seconds=PATIENCE)
        await instance.claim(second)
        await instance.stream(second, first=0, numbers=range(1, 3))
        await eventually(lambda: have_received(sources, "4"), seconds=PATIENCE)
        proxy.cut()
        await instance.finish(second, first=2)
        await get(http, "/tasks/t", wait=10)
        await eventually(sources.are_closed, seconds=PATIENCE)
        log, later = await sources.logs()
    events = [json.loads(message["data"]) for message in log.messages if "id" in message]
    assert [message["id"] for message in log.messages if "id" in message] == ["0", "1", "2", "3", "4", "5"]
    assert [event["index"] for event in events] == [0, 1, 2, 3, 4, 5]
    assert [event["type"] for event in events] == ["Number"] * 5 + [events[-1]["type"]]
    assert [event["terminal"] for event in events] == [False] * 5 + [True]
    # The marker comes before the events of its attempt, and again if the stream broke before these.
    kinds = [message.get("event", "event") for message in log.messages]
    assert kinds == ["event"] * 3 + ["attempt"] * 2 + ["event"] * 3
    assert [json.loads(each["data"]) for each in log.messages if "event" in each] == [TAKEOVER] * 2
    # Where the address says to begin no longer counts when the browser comes back.
    assert later.messages == log.messages[1:]
    # After the last event it connected once more, and was told not to come back: that was not opened.
    assert len(log.opened) == 3
    assert len(log.broken) == 4
    assert RETRY_SECONDS * 0.95 < min(pauses(log)) < BROWSER_RETRY_SECONDS


def pauses(log: SourceLog) -> list[float]:
    """Return how long the browser waited before it came back, each time."""
    back = [*log.opened[1:], log.broken[-1]]
    return [opened - broken for broken, opened in zip(log.broken, back, strict=False)]


async def have_received(sources: EventSources, what: str, *, times: int = 1) -> bool:
    """Return whether each source has received an event or a marker so many times."""
    logs = await sources.logs()
    return all(sum(message.get("id", MARKER) == what for message in log.messages) >= times for log in logs)


@pytest.mark.timeout(240)
async def test_a_source_of_a_foreign_page_gives_up_without_an_event(
    tmp_path: Path, http: HttpConnection, instance: Instance
) -> None:
    await half_written(http, instance)
    with served_page() as foreign:
        async with event_sources(tmp_path, foreign) as sources:
            await sources.open(f"{instance.server.config.url}/tasks/t/events")
            await eventually(sources.are_closed, seconds=PATIENCE)
            [log] = await sources.logs()
    assert (log.messages, log.opened) == ([], [])
