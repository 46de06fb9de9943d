"""Queue, control plane and a service in one process, which is killed at one of its durable writes.

`whole FLOW FOLDER STRIDE` submits one task to such a system, again and again in folders of their own: each
time the process kills itself `STRIDE` writes of the store further on, once just before the write is committed
and once just after, and another one goes on with what it has left. It ends when runs end before their turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.faults.programs.flows import FLOWS, Answer, note

from llama_deploy import (
    Client,
    ControlPlaneConfig,
    SimpleMessageQueueConfig,
    WorkflowService,
    WorkflowServiceConfig,
)
from llama_deploy.client import TaskHandle
from llama_deploy.control_plane import ControlPlaneServer
from llama_deploy.errors import TaskFinishedError
from llama_deploy.message_queues import SimpleMessageQueueServer
from llama_deploy.services.background import end
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.sqlite import SQLiteStateStore

T = TypeVar("T")

AT_ONCE = 14
"""How many systems run at a time; most of their time they wait for leases to end."""
LEASE_SECONDS = 2.0
DATABASE = "control_plane.db"


class MortalStore(SQLiteStateStore):
    """A store whose process dies at a write."""

    deadly_write: int | None = None
    """At which write of those since `watch`; None: at none."""
    dies_before = False
    """Whether it dies before that write is committed, or after."""
    writes: int | None = None
    """How many there were since `watch`."""

    def watch(self) -> None:
        """Begin to count."""
        self.writes = 0

    async def transact(self, work: Callable[[StoreTransaction], T], *, synced: bool = True) -> T:
        number = 0

        def counted(tx: StoreTransaction) -> T:
            nonlocal number
            value = work(tx)
            if self.writes is not None:
                self.writes += 1
                number = self.writes
                if self.dies_before:
                    self._die_at(number)
            return value

        value = await super().transact(counted, synced=synced)
        self._die_at(number)
        return value

    def _die_at(self, number: int) -> None:
        if number == self.deadly_write:
            note("kill", "system", "-")
            os.kill(os.getpid(), signal.SIGKILL)


async def answer_when_asked(handle: TaskHandle) -> None:
    async for event in handle.events():
        if event.type == "Ask":
            with contextlib.suppress(TaskFinishedError):
                await handle.send(Answer(text="yes"), idempotency_key="the answer")


async def ask(client: Client) -> None:
    """Ask for something small all the time, and write down how long each answer took."""
    while True:
        since = time.monotonic()
        await client.core.services.list()
        note("answer", "system", f"{time.monotonic() - since:.6f}")
        await asyncio.sleep(0.2)


async def live(flow: str, folder: Path, *, deadly_write: int | None, before: bool) -> None:
    """Run a system for one task, and write down how that has ended."""
    store = await MortalStore.connect(f"sqlite:///{folder / DATABASE}")
    store.deadly_write, store.dies_before = deadly_write, before
    queue_config = SimpleMessageQueueConfig(port=0, journal_path=folder / "queue.db")
    async with (
        store,
        SimpleMessageQueueServer(queue_config) as server,
        server.local_queue() as queue,
        ControlPlaneServer(
            queue,
            state_store=store,
            config=ControlPlaneConfig(port=0, lease_seconds=LEASE_SECONDS, redispatch_seconds=2.0),
        ) as control_plane,
    ):
        config = WorkflowServiceConfig(
            host="127.0.0.1",
            port=0,
            service_name=flow,
            idle_timeout=0,
            allowed_types=[f"{Answer.__module__}.{Answer.__qualname__}"],
        )
        service = WorkflowService(FLOWS[flow](timeout=None), queue, config, gateway=control_plane.gateway())
        running = [asyncio.create_task(control_plane.plane.run()), await service.launch_local()]
        await service.register_to_control_plane()
        async with Client(control_plane_url=control_plane.config.url, timeout=60.0) as client:
            store.watch()
            # The same again under the same id is the same task.
            handle = await client.submit(flow, task_id="the-task", name="it", seconds=0.01)
            answering = asyncio.create_task(answer_when_asked(handle))
            asking = asyncio.create_task(ask(client))
            result = await handle.result()
            await answering
            streams = [[event.model_dump() async for event in handle.events()] for _ in range(2)]
            outcome = {"result": result, "streams": streams, "attempt": (await handle.info()).attempt}
        (folder / "outcome.json").write_text(json.dumps(outcome))
        await end([*running, asking])


async def prepare(root: Path) -> None:
    """Make an empty database, of which each system gets a copy: its schema takes most of a system's start."""
    async with await SQLiteStateStore.connect(f"sqlite:///{root / DATABASE}"):
        pass


def fork(flow: str, folder: Path, *, deadly_write: int | None, before: bool) -> int:
    """Let a process of its own live; return its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ["LEDGER"] = str(folder / "ledger.txt")
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        logging.basicConfig(level=logging.INFO)
        asyncio.run(live(flow, folder, deadly_write=deadly_write, before=before))
        status = 0
    except BaseException:  # noqa: BLE001 - the boundary of the process
        traceback.print_exc()
    finally:
        os._exit(status)


class Killing:
    """Runs systems for one flow, several at a time, each with another deadly write.

    Args:
        flow: The workflow.
        root: Where each has a folder of its own.
        stride: Every how many writes one is deadly.
    """

    def __init__(self, flow: str, root: Path, stride: int) -> None:
        self._flow = flow
        self._root = root
        self._next = dict.fromkeys(("before", "after"), 1)
        """The moments for which there is a deadly write left, with its number."""
        self._stride = stride
        self._dying: dict[int, tuple[str, Path]] = {}
        self._recovering: set[int] = set()

    def run(self) -> None:
        """Go through all deadly writes, until a run has ended before its one."""
        self._root.mkdir(parents=True)
        asyncio.run(prepare(self._root))
        while self._next or self._dying or self._recovering:
            if self._next and len(self._dying) + len(self._recovering) < AT_ONCE:
                self._begin(min(self._next, key=lambda moment: self._next[moment]))
            else:
                self._take(*os.wait())

    def _begin(self, moment: str) -> None:
        number = self._next[moment]
        self._next[moment] += self._stride
        folder = self._root / f"{moment}-{number:03d}"
        folder.mkdir()
        shutil.copy(self._root / DATABASE, folder)
        pid = fork(self._flow, folder, deadly_write=number, before=moment == "before")
        self._dying[pid] = (moment, folder)

    def _take(self, pid: int, status: int) -> None:
        if pid in self._recovering:
            self._recovering.remove(pid)
            return
        moment, folder = self._dying.pop(pid)
        if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
            self._recovering.add(fork(self._flow, folder, deadly_write=None, before=False))
        else:
            self._next.pop(moment, None)


if __name__ == "__main__":
    flow_name, root_folder, every = sys.argv[1:]
    Killing(flow_name, Path(root_folder), int(every)).run()
