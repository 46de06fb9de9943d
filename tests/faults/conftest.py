"""A system of real processes, each of which can be killed and started again."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from llama_deploy import Client
from llama_deploy.errors import UnavailableError
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import Program, free_port

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[2]

_ERROR = re.compile(r"^(?:ERROR:|[\d-]+ [\d:,]+ ERROR )(?!aiormq|aiokafka).*", re.MULTILINE)
"""As `logging.basicConfig` writes it, or `llamactl`."""


def errors_in(log: str) -> list[str]:
    """Return what a program has logged as an error, beside what drivers say of a broker that is away."""
    return _ERROR.findall(log)


class System:
    """Queue, control plane and service instances as processes on fixed ports over one data folder."""

    def __init__(self, folder: Path, stack: ExitStack, *, lease_seconds: float = 5.0) -> None:
        self.folder = folder
        self.ledger_path = folder / "ledger.txt"
        self.ledger_path.touch()
        self.control_plane_port = free_port()
        self._stack = stack
        self.env = {
            "CONTROL_PLANE_PORT": str(self.control_plane_port),
            "CONTROL_PLANE_STATE_STORE_URI": f"sqlite:///{folder}/control_plane.db",
            "CONTROL_PLANE_LEASE_SECONDS": str(lease_seconds),
            "SIMPLE_MESSAGE_QUEUE_PORT": str(free_port()),
            "SIMPLE_MESSAGE_QUEUE_JOURNAL_PATH": str(folder / "queue.db"),
            "LEDGER": str(self.ledger_path),
        }

    def stand_behind(self, port: int) -> None:
        """Let clients and services look for the control plane there."""
        self.control_plane_port = port
        self.env["CONTROL_PLANE_PORT"] = str(port)

    @property
    def url(self) -> str:
        scheme = "https" if "CONTROL_PLANE_TLS_CERT" in self.env else "http"
        return f"{scheme}://127.0.0.1:{self.control_plane_port}"

    def client(self, timeout: float = 60.0) -> Client:
        return Client(control_plane_url=self.url, timeout=timeout)

    def start(self, *argv: str, **env: str) -> Program:
        """Start a program from the folder of programs; it is killed at the end of the test."""
        name, *arguments = argv
        output = self.folder / f"{'-'.join(argv)}-{free_port()}.log"
        program = Program([str(PROGRAMS / name), *arguments], output=output, env={**self.env, **env})
        return self._stack.enter_context(program)

    def module(self, *argv: str, **env: str) -> Program:
        """Start a program from the folder of programs that imports others from there."""
        name, *arguments = argv
        output = self.folder / f"{name}-{free_port()}.log"
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        program = Program(
            ["-m", f"tests.faults.programs.{name}", *arguments],
            output=output,
            env={**self.env, "PYTHONPATH": path, **env},
        )
        return self._stack.enter_context(program)

    def worker(self, *targets: str) -> Program:
        """Start `llamactl worker` without a supervisor: steps run in the process that is returned."""
        output = self.folder / f"worker-{free_port()}.log"
        argv = ["-m", "llama_deploy.cli", "-s", self.url, "worker", *targets, "--processes", "0"]
        program = Program(argv, output=output, env=self.env)
        return self._stack.enter_context(program)

    def llamactl(self, *argv: str, **env: str) -> Program:
        """Start a command, whose workflows may be those of the folder of programs."""
        output = self.folder / f"llamactl-{free_port()}.log"
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        program = Program(
            ["-m", "llama_deploy.cli", *argv], output=output, env={**self.env, "PYTHONPATH": path, **env}
        )
        return self._stack.enter_context(program)

    def run(self, argv: Sequence[str]) -> Program:
        """Start the interpreter with these arguments."""
        output = self.folder / f"program-{free_port()}.log"
        return self._stack.enter_context(Program(argv, output=output, env=self.env))

    def service(self, name: str = "ledger", **env: str) -> Program:
        return self.start("service.py", LLAMA_DEPLOY_WF_SERVICE_SERVICE_NAME=name, **env)

    def ledger(self, word: str) -> Counter[str]:
        """How often each run has written `word` into the ledger, by the name of the run."""
        lines = [line.split() for line in self.ledger_path.read_text().splitlines()]
        return Counter(name for _, written, name, _ in lines if written == word)

    def runs_of(self, name: str) -> list[int]:
        """The process ids in which a run has begun, in order."""
        lines = [line.split() for line in self.ledger_path.read_text().splitlines()]
        return [int(pid) for _, word, run, pid in lines if (word, run) == ("begin", name)]

    async def instances(
        self, client: Client, count: int, name: str = "ledger", *, ordinary: bool = False
    ) -> None:
        """Wait until as many instances of the service are alive.

        Args:
            client: Asks for them.
            count: How many.
            name: The service.
            ordinary: Leave out those that run one task at a time.
        """

        async def there() -> bool:
            try:
                services = await client.core.services.list()
            except UnavailableError:
                return False
            alive = [
                instance
                for service in services
                if service.id == name
                for instance in service.instances
                if instance.alive and (not ordinary or instance.slots != 1)
            ]
            return len(alive) == count

        await eventually(there, seconds=120)

    async def begun(self, count: int) -> None:
        """Wait until as many runs have begun."""
        await eventually(lambda: self.ledger("begin").total() >= count, seconds=120)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    with ExitStack() as stack:
        yield System(tmp_path, stack)
