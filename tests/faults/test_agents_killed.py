"""Agents of llama_index are killed between and in their tools; a tool that has ended is not called again."""

from __future__ import annotations

import sqlite3
from contextlib import aclosing, closing
from typing import Any

import pytest
from workflows.events import HumanResponseEvent

from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import Program
from tests.faults.conftest import System

pytestmark = pytest.mark.faults

KINDS = pytest.mark.parametrize("kind", ["FunctionAgent", "AgentWorkflow", "ReActAgent"])


@pytest.fixture
def system(system: System) -> System:
    system.env["CONTROL_PLANE_LEASE_SECONDS"] = "1"
    return system


def agent(system: System, kind: str) -> Program:
    return system.start("agent.py", KIND=kind, LLAMA_DEPLOY_WF_SERVICE_SERVICE_NAME="agent")


def spoken(output: Any) -> str:
    return "".join(block.get("text", "") for block in output["response"]["blocks"])


def journal_holds(system: System, word: str) -> bool:
    """Whether what a tool has answered is on disk; nothing that a client sees tells."""
    with closing(sqlite3.connect(f"file:{system.folder}/control_plane.db?mode=ro", uri=True)) as store:
        rows = store.execute("SELECT count(*) FROM journal WHERE entry LIKE ?", [f"%{word}%"]).fetchone()
    return bool(rows[0])


@KINDS
async def test_a_tool_that_has_ended_is_not_called_again(system: System, kind: str) -> None:
    system.start("core.py")
    instance = agent(system, kind)
    async with system.client() as client:
        await system.instances(client, 1, "agent")
        handle = await client.submit("agent", user_msg="quick slow")
        await eventually(lambda: system.ledger("begin")["slow"] == 1, seconds=60)
        instance.kill()
        instance.start()
        assert spoken(await handle.result()).endswith("one two")
        assert (await handle.info()).attempt == 2
        results = [
            event.data["tool_name"] async for event in handle.events() if event.type == "ToolCallResult"
        ]
    assert results == ["quick", "slow"]
    assert system.ledger("begin") == {"quick": 1, "slow": 2}


async def test_of_tools_that_are_called_at_once_only_the_killed_one_is_called_again(system: System) -> None:
    system.start("core.py")
    instance = agent(system, "FunctionAgent")
    async with system.client() as client:
        await system.instances(client, 1, "agent")
        handle = await client.submit("agent", user_msg="quick+slow")
        await eventually(lambda: journal_holds(system, "ToolCallResult"), seconds=60)
        await eventually(lambda: system.ledger("begin")["slow"] == 1, seconds=60)
        instance.kill()
        instance.start()
        assert sorted(spoken(await handle.result()).split()) == ["one", "two"]
    assert system.ledger("begin") == {"quick": 1, "slow": 2}


@KINDS
async def test_a_tool_that_asks_a_human_is_answered_after_a_kill_of_everything(
    system: System, kind: str
) -> None:
    core = system.start("core.py")
    instance = agent(system, kind)
    async with system.client() as client:
        await system.instances(client, 1, "agent")
        handle = await client.submit("agent", user_msg="quick ask")
        async with aclosing(handle.events()) as events:
            while (await anext(events)).type != "InputRequiredEvent":
                pass
        instance.kill()
        core.kill()
        core.start()
        instance.start()
        await handle.send(HumanResponseEvent(response="yes"))
        assert spoken(await handle.result()).endswith("one yes")
    assert system.ledger("begin") == {"quick": 1}
    assert system.ledger("end") == {"quick": 1, "ask": 1}


@KINDS
async def test_the_chat_of_a_session_goes_on_after_a_kill_of_everything(system: System, kind: str) -> None:
    core = system.start("core.py")
    instance = agent(system, kind)
    async with system.client() as client:
        await system.instances(client, 1, "agent")
        session = await client.core.sessions.create()
        await client.run("agent", session=session, user_msg="quick")
        instance.kill()
        core.kill()
        core.start()
        instance.start()
        handle = await client.submit("agent", session=session, user_msg="quick quick")
        await handle.result()
        asked, *_ = [event.data async for event in handle.events() if event.type == "AgentInput"]
    texts = [block["text"] for message in asked["input"] for block in message["blocks"] if "text" in block]
    assert [text for text in texts if text in ("quick", "quick quick")] == ["quick", "quick quick"]
