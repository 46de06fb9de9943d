"""The queues and stores that are compared, each set so that it loses nothing that it has accepted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeVar

import psutil
import pytest
from tests.servers import postgresql
from tests.servers.brokers import DURABLE, FORGETFUL, Kind
from tests.servers.nats import NatsServer
from tests.servers.process import ServerProcess

from benchmarks.processes import HOST, START_SECONDS, Server, part_environment

T = TypeVar("T")


class ServerMissingError(Exception):
    """The program of a server is not on this machine."""


class SimpleQueueServer(ServerProcess):
    """The simple queue with a journal, alone in a process."""

    patience_seconds: ClassVar[float] = START_SECONDS

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = f"simple://{HOST}:{self.port}"

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.parts", "queue", f"--port={self.port}"]
        return [*command, f"--journal={self._folder / 'queue.db'}"]

    def _options(self) -> dict[str, Any]:
        # It ends with its input, so that it does not outlive the benchmark.
        return {"stdin": subprocess.PIPE, "cwd": self._folder, "env": part_environment({})}


def nats(folder: Path) -> NatsServer:
    """Return a server that writes each message to the disk before it confirms it."""
    config = folder / "nats.conf"
    config.write_text("jetstream { sync_interval: always }\n")
    return NatsServer(folder, "-c", str(config))


def sqlite(folder: Path) -> AbstractContextManager[str]:
    """Return the address of a store in a file."""
    return nullcontext(f"sqlite:///{folder / 'state.db'}")


@contextmanager
def postgresql_database(_folder: Path) -> Iterator[str]:
    """Run a server and yield the address of an empty database."""
    # As PostgreSQL is set when it is installed, unlike the server of the tests.
    settings = ("fsync=on", "full_page_writes=on", "shared_buffers=128MB", "autovacuum=on")
    with postgresql.running_server(*settings) as server:
        server.execute("CREATE DATABASE bench")
        yield server.uri("bench")


QUEUES: Final[Mapping[str, Kind]] = MappingProxyType(
    {"simple": Kind(SimpleQueueServer), **DURABLE, "nats": Kind(nats), "aws": FORGETFUL["aws"]}
)
"""The queues by name."""

STORES: Final[Mapping[str, Callable[[Path], AbstractContextManager[str]]]] = MappingProxyType(
    {"sqlite": sqlite, "postgresql": postgresql_database}
)
"""The stores by name: each takes a folder, and yields an address."""


async def opened(
    resources: AsyncExitStack, make: Callable[[Path], AbstractContextManager[T]], folder: Path
) -> tuple[T, Server]:
    """Make and enter what starts a server or none; return what it yields, and the server's processes.

    Args:
        resources: Ends the server.
        make: Takes `folder`.
        folder: For all that the server keeps.

    Raises:
        ServerMissingError: The server is not on this machine.
        RuntimeError: The same, where all servers have to be.
    """
    me = psutil.Process()
    before = me.children()
    try:
        yielded = await asyncio.to_thread(lambda: resources.enter_context(make(folder)))
    except pytest.skip.Exception as exc:  # as the servers of the tests tell it
        raise ServerMissingError(str(exc)) from None
    except pytest.fail.Exception as exc:
        raise RuntimeError(str(exc)) from None
    return yielded, Server([process for process in me.children() if process not in before])
