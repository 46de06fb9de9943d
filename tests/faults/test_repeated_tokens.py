"""An instance is killed in the middle of a text, and a page shows each token once."""

from __future__ import annotations

import pytest

from llama_deploy import NewAttempt, TaskEvent
from tests.faults.conftest import System

pytestmark = pytest.mark.faults
TOKENS = 200


async def test_a_killed_step_streams_again_and_a_page_discards_what_was_half_written(system: System) -> None:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "1"
    system.start("core.py")
    service = system.start("tokens.py")
    async with system.client() as client:
        await system.instances(client, 1, "writer")
        handle = await client.submit("writer")
        received = 0
        shown: dict[int, TaskEvent] = {}
        news: list[NewAttempt] = []
        async for item in handle.events(attempts=True):
            if isinstance(item, NewAttempt):
                news.append(item)
                shown = {index: event for index, event in shown.items() if not item.repeats(event)}
            elif item.type == "Token":
                received += 1
                shown[item.index] = item
                if received == TOKENS // 2:
                    service.kill()
                    service.start()
        assert await handle.result() == "written"
    assert received > TOKENS + 1, "tokens came twice"
    assert [(new.attempt, new.repeats_from, new.reason) for new in news] == [(2, 1, "lost")]
    assert [event.data["text"] for event in shown.values()] == ["title", *map(str, range(TOKENS))]
