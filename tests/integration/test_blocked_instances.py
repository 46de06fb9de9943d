"""Instances whose event loop is blocked, as their heartbeats report them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llama_deploy.types import BlockedStep
from llama_deploy.types.instance_protocol import Heartbeat
from llama_deploy.web.http_connection import HttpConnection
from tests.integration.conftest import Instance, beat, get

THINKS = BlockedStep(task_id="t1", step="think", seconds=12.3, place="flow.py:7")


async def listed(http: HttpConnection) -> dict[str, Any]:
    (found,) = (await get(http, "/services/echo"))["instances"]
    return dict(found)


async def test_a_service_shows_the_load_of_its_instances(http: HttpConnection, instance: Instance) -> None:
    assert (await listed(http))["slots"] is None
    await beat(instance, slots=8, running=3)
    found = await listed(http)
    assert (found["slots"], found["running"], found["blocked"]) == (8, 3, [])


async def test_a_service_shows_what_blocks_its_instances_until_it_ends(
    http: HttpConnection, instance: Instance
) -> None:
    await beat(instance, blocked_seconds=12.3, blocked=[THINKS])
    assert (await listed(http))["blocked"] == [THINKS.model_dump()]
    await beat(instance)
    assert (await listed(http))["blocked"] == []


def test_a_blocked_step_is_told_in_words() -> None:
    assert str(THINKS) == "blocked for 12 s by step 'think' of task t1 at flow.py:7"
    assert str(THINKS.model_copy(update={"task_id": None})) == "blocked for 12 s by step 'think' at flow.py:7"
    assert str(BlockedStep(seconds=2, place="flow.py:7")) == "blocked for 2 s by code at flow.py:7"


@pytest.mark.parametrize("fields", [{"task_id": "t" * 501}, {"step": "s" * 501}, {"place": "p" * 501}])
def test_its_texts_are_bounded(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        BlockedStep(seconds=1, **fields)
    with pytest.raises(ValidationError):
        Heartbeat(instance_id="one", blocked=[THINKS] * 101)
