"""The event loop of the control plane is blocked for longer than a lease, at different moments."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import pytest

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.types import TaskSubmission
from llama_deploy.types.instance_protocol import BEATS_PER_LEASE
from tests.integration.conftest import Instance, beat

T = TypeVar("T")

LEASE = 1.5
BEAT_PAUSE = LEASE / BEATS_PER_LEASE


class BlockingStore(SQLiteStateStore):
    """Blocks the event loop during a read, as slow code of this process would."""

    block_seconds = 0.0
    was_blocked: asyncio.Event

    async def read(self, work: Callable[[StoreTransaction], T]) -> T:
        if seconds := self.block_seconds:
            self.block_seconds = 0.0
            time.sleep(seconds)  # noqa: ASYNC251 - this is what is tested
            self.was_blocked.set()
        return await super().read(work)


@pytest.fixture
async def store(config: ControlPlaneConfig) -> AsyncIterator[BlockingStore]:
    async with await BlockingStore.connect(config.store_uri) as store:
        store.was_blocked = asyncio.Event()
        yield store


def in_a_sweep(store: BlockingStore) -> None:
    """Block the loop when the next sweep has begun, for longer than a lease."""
    store.block_seconds = 2 * LEASE


def before_a_sweep(store: BlockingStore) -> None:
    """Block the loop from before the next sweep until shortly after the end of the lease."""

    def block() -> None:
        time.sleep(LEASE)
        store.was_blocked.set()

    asyncio.get_running_loop().call_later(LEASE / 2, block)


@pytest.mark.parametrize("lease_seconds", [LEASE])
@pytest.mark.parametrize("block", [in_a_sweep, before_a_sweep])
async def test_no_attempt_is_lost_in_a_time_in_which_no_heartbeat_could_be_heard(
    server: ControlPlaneServer,
    instance: Instance,
    store: BlockingStore,
    block: Callable[[BlockingStore], None],
) -> None:
    await server.plane.tasks.submit(TaskSubmission(service_name="echo"))
    dispatch = await instance.next_dispatch()
    assert (await instance.claim(dispatch)).granted
    block(store)
    while not store.was_blocked.is_set():
        await beat(instance, dispatch)
        await asyncio.sleep(BEAT_PAUSE)
    await asyncio.sleep(BEAT_PAUSE)  # the worst that can be after the block
    assert (await beat(instance, dispatch)).stale == []
