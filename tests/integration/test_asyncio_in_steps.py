"""asyncio as people use it: event loops within steps, and clients that block."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.client import SyncClient
from llama_deploy.compat import LlamaDeployClient
from llama_deploy.errors import BlockingCallError, UnavailableError
from tests.integration.in_process import Stack, result_of, running_stack

NOWHERE = "http://127.0.0.1:9"


class Sync(Workflow):
    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__()
        self.act = act

    @step
    def work(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=self.act())


class Async(Workflow):
    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__()
        self.act = act

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=self.act())


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


def first_call(client: SyncClient) -> Any:
    return client.run("anything")


def of_a_session(client: SyncClient) -> Any:
    return client.core.sessions.create()


def of_a_stream(client: SyncClient) -> Any:
    return next(iter(client.task("any").events()))


@pytest.mark.parametrize("call", [first_call, of_a_session, of_a_stream])
async def test_a_blocking_client_refuses_to_block_an_event_loop(call: Callable[[SyncClient], Any]) -> None:
    since = time.monotonic()
    with (
        SyncClient(NOWHERE, timeout=60) as client,
        pytest.raises(BlockingCallError, match=r"asyncio\.to_thread.*`Client`|`Client`.*asyncio\.to_thread"),
    ):
        call(client)
    assert time.monotonic() - since < 30  # far below the time that the client is patient


async def test_the_blocking_client_of_0_5_refuses_it_too(stack: Stack) -> None:
    with pytest.warns(DeprecationWarning, match="Client"):
        old = LlamaDeployClient(stack.server.config)
    with pytest.raises(BlockingCallError):
        old.create_session()


async def test_a_notebook_may_block_its_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    # IPython runs every cell in an event loop, and a cell that blocks it is what its user expects.
    monkeypatch.setattr(builtins, "get_ipython", lambda: None, raising=False)
    with SyncClient(NOWHERE, timeout=0.1) as client, pytest.raises(UnavailableError):
        client.core.sessions.create()


async def test_a_blocking_client_works_in_a_synchronous_step(stack: Stack) -> None:
    def ask() -> Any:
        with SyncClient(stack.server.config.url, timeout=10) as client:
            return client.run("inner")

    async with (
        stack.serving(stack.service(Sync(lambda: 7), "inner")),
        stack.serving(stack.service(Sync(ask), "outer")),
        stack.serving(stack.service(Async(ask), "wrong")),
    ):
        assert result_of(await stack.run("outer")) == 7
        failed = await stack.run("wrong")
        assert failed.result is not None
        assert failed.result.error is not None
        assert failed.result.error.type.endswith("BlockingCallError")


async def answer() -> int:
    await asyncio.sleep(0.01)
    return 42


def with_run() -> int:
    return asyncio.run(answer())


def with_new_loop() -> int:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(answer())
    finally:
        loop.close()


def with_runner() -> int:
    with asyncio.Runner() as runner:
        return runner.run(answer())


@pytest.mark.parametrize("act", [with_run, with_new_loop, with_runner])
async def test_a_synchronous_step_may_run_a_loop_of_its_own(stack: Stack, act: Callable[[], int]) -> None:
    async with stack.serving(stack.service(Sync(act))):
        assert result_of(await stack.run()) == 42
