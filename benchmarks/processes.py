"""The processes that are measured: started, watched, weighed, killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
import psutil

import llama_deploy
from llama_deploy.client import Client
from llama_deploy.types import ServiceDefinition

HOST: Final = "127.0.0.1"
ROOT: Final = Path(__file__).resolve().parent.parent
SOURCE: Final = Path(llama_deploy.__file__).resolve().parent.parent
"""Where the package comes from that is measured: this checkout, or another revision."""
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0
LOOK_SECONDS: Final = 0.02
"""How often a process that starts is asked whether it is ready."""
Services = Mapping[str, ServiceDefinition]
"""The services that a control plane knows, by name."""

SETTINGS_PREFIXES: Final = (
    "AWS_SQS_",
    "CONTROL_PLANE_",
    "KAFKA_",
    "LLAMA_DEPLOY_",
    "NATS_",
    "RABBITMQ_",
    "REDIS_",
    "SIMPLE_MESSAGE_QUEUE_",
    "SIMPLE_ORCHESTRATOR_",
)


class PartFailedError(Exception):
    """A process that is measured has not started, or has ended too early."""


@dataclass(frozen=True, slots=True)
class Backends:
    """The queue and the store of a system, both running already."""

    queue_url: str
    store_uri: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for the control plane and the services."""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind((HOST, 0))
        return [listener.getsockname()[1] for listener in sockets]


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time that a process has taken, in seconds, that of its threads included."""
    times = process.cpu_times()
    return float(times.user + times.system)


def memory_mib(process: psutil.Process) -> float:
    """Return the memory in which a process resides, in MiB."""
    return float(process.memory_info().rss) / 2**20


@dataclass(frozen=True, slots=True)
class Server:
    """The processes of a server that is not ours, as it was started."""

    processes: Sequence[psutil.Process]

    def cpu_seconds(self) -> float:
        """Return the CPU time of the processes and of all that descend from them, in seconds."""
        total = 0.0
        for process in self.processes:
            for each in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += cpu_seconds(each)
        return total


class Part:
    """A process of ours. `start` it, then `stop` or `kill` it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self.usage = psutil.Process(process.pid)
        self._process = process
        self._log = log

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], *, directory: Path, settings: Mapping[str, str] | None = None
    ) -> Part:
        """Start `command` with its output in a file of `directory`, where it also runs."""
        log = directory / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=directory,
                env=part_environment(settings or {}),
            )
        return cls(name, process, log)

    def check(self) -> None:
        """Raise `PartFailedError` if the process has ended."""
        if self._process.returncode is not None:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
            raise PartFailedError(f"{self.name} ended with {self._process.returncode}:\n{tail}")

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self._process.kill()

    async def stop(self) -> None:
        """End it in order. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def part_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with no other settings than these, as they would change what is measured."""
    kept = {
        name: value for name, value in os.environ.items() if not name.upper().startswith(SETTINGS_PREFIXES)
    }
    return {**kept, **settings, "PYTHONPATH": os.pathsep.join((str(ROOT), str(SOURCE)))}


async def until_ready(parts: Sequence[Part], url: str, ready: Callable[[Services], bool]) -> None:
    """Wait until the control plane answers, and `ready` says that the services are as they should be.

    Raises:
        PartFailedError: One of the parts has ended, or it takes too long.
    """
    try:
        async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{url}/services") as response:
                        answer = await response.json()
                    if ready({name: ServiceDefinition.model_validate(item) for name, item in answer.items()}):
                        return
                for part in parts:
                    part.check()
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError as exc:
        names = ", ".join(part.name for part in parts)
        raise PartFailedError(f"not ready after {START_SECONDS:.0f} s: {names}") from exc


class Stack:
    """A system in processes of its own: control plane in one, perhaps the queue too, services in others."""

    def __init__(
        self, *, directory: Path, port: int, core: Part, backends: Backends | None, resources: AsyncExitStack
    ) -> None:
        self.url = f"http://{HOST}:{port}"
        self.core = core
        self._directory = directory
        self.port = port
        self._backends = backends
        self._resources = resources
        self._services = 0

    @classmethod
    @asynccontextmanager
    async def running(
        cls, *, directory: Path, lease_seconds: float, backends: Backends | None = None
    ) -> AsyncIterator[Stack]:
        """Start a core, and stop everything afterwards; services wait for it.

        Args:
            directory: For the output of the processes, and for the store that is the core's own.
            lease_seconds: How long an instance may be silent.
            backends: None: the queue is in the core, and the store a SQLite file.
        """
        port, queue_port = free_ports(2)
        if backends is None:
            queue, store = f"simple://{HOST}:{queue_port}", f"sqlite:///{directory / 'state.db'}"
        else:
            queue, store = backends.queue_url, backends.store_uri
        command = [
            *(sys.executable, "-m", "benchmarks.parts", "core", f"--port={port}"),
            *(f"--queue={queue}", f"--store={store}", f"--lease-seconds={lease_seconds}"),
            *(() if backends is None else ("--queue-elsewhere",)),
        ]
        async with AsyncExitStack() as resources:
            settings = backends.settings if backends else None
            core = await Part.start("core", command, directory=directory, settings=settings)
            resources.push_async_callback(core.stop)
            yield cls(directory=directory, port=port, core=core, backends=backends, resources=resources)

    async def add_services(self, names: Sequence[str], *, max_concurrent_tasks: int) -> Part:
        """Start a process with an instance of each of the named services; returns when all are registered."""
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._services += 1
        backends = self._backends
        command = [
            *(sys.executable, "-m", "benchmarks.parts", "services", f"--port={self.port}"),
            *(() if backends is None else (f"--queue={backends.queue_url}",)),
            f"--max-concurrent-tasks={max_concurrent_tasks}",
            *(f"{name}:{port}" for name, port in ports.items()),
        ]
        part = await Part.start(
            f"service-{self._services}",
            command,
            directory=self._directory,
            settings=backends.settings if backends else None,
        )
        self._resources.push_async_callback(part.stop)

        def registered(services: Services) -> bool:
            return all(
                name in services and port in {item.port for item in services[name].instances}
                for name, port in ports.items()
            )

        await until_ready((self.core, part), self.url, registered)
        return part

    def client(self) -> Client:
        """Return a client of the system; close it."""
        return Client(control_plane_url=self.url, timeout=60.0)


@asynccontextmanager
async def all_in_one() -> AsyncIterator[Part]:
    """Run another system in one process, by `llamactl serve --processes 0`, and stop it afterwards."""
    port, queue_port = free_ports(2)
    command = [
        *(sys.executable, "-m", "llama_deploy.cli", "serve", "benchmarks.workloads:echo"),
        f"--port={port}",
        f"--queue-port={queue_port}",
        "--processes=0",
    ]
    with tempfile.TemporaryDirectory(prefix="llama_deploy_bench_") as directory:
        part = await Part.start("llamactl serve", command, directory=Path(directory))
        try:
            await until_ready(
                (part,),
                f"http://{HOST}:{port}",
                lambda services: any(item.instances for item in services.values()),
            )
            yield part
        finally:
            await part.stop()
