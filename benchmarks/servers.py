"""The queues and stores that are compared, each set so that it loses nothing that it has accepted."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self, TypeVar

import psutil
import pytest
from tests.servers import postgresql
from tests.servers.brokers import DURABLE, FORGETFUL, Kind
from tests.servers.nats import NatsServer

from benchmarks.processes import HOST, START_SECONDS, Server, free_ports, part_environment

T = TypeVar("T")


class ServerMissingError(Exception):
    """The program of a server is not on this machine."""


class SimpleQueueServer:
    """The simple queue with a journal, alone in a process."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.url = f"simple://{HOST}:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens, again after it was killed."""
        command = [sys.executable, "-m", "benchmarks.parts", "queue", f"--port={self.port}"]
        with (self._folder / "queue.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, f"--journal={self._folder / 'queue.db'}"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=part_environment({}),
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((HOST, self.port), timeout=1.0).close()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "queue.log").read_text(errors="replace")) from None
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """End it as `kill -9` does."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.kill()


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
    with postgresql.running_server("fsync=on", "full_page_writes=on") as server:
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
