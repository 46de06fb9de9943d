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
from pathlib import Path
from typing import Final

import psutil

from llama_deploy.client import Client
from llama_deploy.errors import LlamaDeployError
from llama_deploy.types import ServiceDefinition
from llama_deploy.web.connection import HttpConnection, HttpRequest

HOST: Final = "127.0.0.1"
ROOT: Final = Path(__file__).resolve().parent.parent
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0
LOOK_SECONDS: Final = 0.02
"""How often a process that starts is asked whether it is ready."""
Services = Mapping[str, ServiceDefinition]
"""The services that a control plane knows, by name."""

SETTINGS_PREFIXES: Final = (
    "CONTROL_PLANE_",
    "LLAMA_DEPLOY_",
    "SIMPLE_MESSAGE_QUEUE_",
    "SIMPLE_ORCHESTRATOR_",
)


class PartFailedError(Exception):
    """A process that is measured has not started, or has ended too early."""


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


class Part:
    """A process of ours. `start` it, then `stop` or `kill` it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self.usage = psutil.Process(process.pid)
        self._process = process
        self._log = log

    @classmethod
    async def start(cls, name: str, command: Sequence[str], *, directory: Path) -> Part:
        """Start `command` with its output in a file of `directory`, where it also runs."""
        log = directory / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=directory,
                env=_environment(),
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


def _environment() -> dict[str, str]:
    """Return the environment without settings that would change what is measured."""
    kept = {
        name: value for name, value in os.environ.items() if not name.upper().startswith(SETTINGS_PREFIXES)
    }
    return {**kept, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}


async def until_ready(parts: Sequence[Part], url: str, ready: Callable[[Services], bool]) -> None:
    """Wait until the control plane answers, and `ready` says that the services are as they should be.

    Raises:
        PartFailedError: One of the parts has ended, or it takes too long.
    """
    connection = HttpConnection(url)
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                with contextlib.suppress(LlamaDeployError):
                    answer = await connection.request(HttpRequest("GET", "/services"))
                    if ready({name: ServiceDefinition.model_validate(item) for name, item in answer.items()}):
                        return
                for part in parts:
                    part.check()
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError as exc:
        names = ", ".join(part.name for part in parts)
        raise PartFailedError(f"not ready after {START_SECONDS:.0f} s: {names}") from exc
    finally:
        await connection.close()


class Stack:
    """A system in processes of its own: queue and control plane in one, services in others."""

    def __init__(self, *, directory: Path, port: int, core: Part, resources: AsyncExitStack) -> None:
        self.url = f"http://{HOST}:{port}"
        self.core = core
        self._directory = directory
        self._port = port
        self._resources = resources
        self._services = 0

    @classmethod
    @asynccontextmanager
    async def running(cls, *, directory: Path, lease_seconds: float) -> AsyncIterator[Stack]:
        """Start a core, and stop everything afterwards; services wait for it."""
        port, queue_port = free_ports(2)
        command = [
            *(sys.executable, "-m", "benchmarks.parts", f"--port={port}", "core"),
            f"--queue-port={queue_port}",
            f"--database={directory / 'state.db'}",
            f"--lease-seconds={lease_seconds}",
        ]
        async with AsyncExitStack() as resources:
            core = await Part.start("core", command, directory=directory)
            resources.push_async_callback(core.stop)
            yield cls(directory=directory, port=port, core=core, resources=resources)

    async def add_services(self, names: Sequence[str], *, max_concurrent_tasks: int) -> Part:
        """Start a process with an instance of each of the named services; returns when all are registered."""
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._services += 1
        command = [
            *(sys.executable, "-m", "benchmarks.parts", f"--port={self._port}", "services"),
            f"--max-concurrent-tasks={max_concurrent_tasks}",
            *(f"{name}:{port}" for name, port in ports.items()),
        ]
        part = await Part.start(f"service-{self._services}", command, directory=self._directory)
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
    """Run another system in one process, by `llamactl serve`, and stop it afterwards."""
    port, queue_port = free_ports(2)
    command = [
        *(sys.executable, "-m", "llama_deploy.cli", "serve", "benchmarks.workloads:echo"),
        f"--port={port}",
        f"--queue-port={queue_port}",
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
