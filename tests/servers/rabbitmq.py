"""A RabbitMQ server, from the system's package `rabbitmq-server`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from llama_deploy.testing.processes import free_port

# The one in the path is the packagers' wrapper, which becomes another user and writes to the system's logs.
_SERVER: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_PATIENCE_SECONDS: Final = 60.0
_CONFIG: Final = """\
listeners.tcp.1 = 127.0.0.1:{port}
disk_free_limit.absolute = 1MB
vm_memory_high_watermark.absolute = 1GB
raft.wal_max_size_bytes = 16777216
log.console = true
log.console.level = info
log.file = false
{more}
"""


class RabbitMQServer:
    """One node, on one port for all its starts. A context manager that kills it at the end.

    Args:
        folder: Where it keeps everything; what is there, it takes up again.
        settings: More lines for its `rabbitmq.conf`.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self._folder = folder
        self._epmd_port = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        config = _CONFIG.format(port=self.port, more="\n".join(settings))
        (folder / "rabbitmq.conf").write_text(config)
        (folder / "enabled_plugins").write_text("[].")
        (folder / "environment").touch()

    def start(self) -> None:
        """Start it and wait until it takes connections, again after it was killed."""
        _check_installed()
        # Erlang would start its port mapper as a daemon that stays.
        mapper = ["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        with (self._folder / "server.log").open("ab") as log:
            for command in (mapper, [str(_SERVER)]):
                process = subprocess.Popen(
                    command, stdout=log, stderr=log, env=self._environment(), start_new_session=True
                )
                self._processes.append(process)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._answers():
            if self._processes[-1].poll() is not None or time.monotonic() > deadline:
                text = (self._folder / "server.log").read_text(errors="replace")
                self.kill()
                raise RuntimeError(f"RabbitMQ has not started:\n{text[-4000:]}")
            time.sleep(0.05)

    def remembers(self, queue: str) -> bool:
        """Return whether a quorum queue is in the file from which it is known after a kill."""
        files = (self._folder / "data").glob("*/quorum/*/names.dets")
        name = re.compile(re.escape(queue.encode()) + rb"(?!\.)")  # and not that of its dead letters
        return any(name.search(file.read_bytes()) for file in files)

    def remembers_all(self) -> bool:
        """Return whether that holds for all quorum queues."""
        known = b"".join(file.read_bytes() for file in (self._folder / "data").glob("*/quorum/*/names.dets"))
        queues = [entry for entry in (self._folder / "data").glob("*/quorum/*/*") if entry.is_dir()]
        return all(entry.name.encode() in known for entry in queues)

    def kill(self) -> None:
        """End it as a power cut would, but for what the system holds of its files. Idempotent."""
        while self._processes:
            process = self._processes.pop()
            # A shell script and its children: they have a process group of their own.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def pause(self) -> None:
        """Stop it where it stands."""
        os.killpg(self._processes[-1].pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.killpg(self._processes[-1].pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.kill()

    def _answers(self) -> bool:
        """Whether it answers as AMQP does, with the begin of its first frame."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as probe:
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                return probe.recv(1) == b"\x01"
        except OSError:
            return False

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")}
        return {
            **kept,
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"rabbit{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "environment"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # Two schedulers that do not spin, and no port that other machines reach.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none "
            "-kernel inet_dist_use_interface {127,0,0,1}",
        }


def _check_installed() -> None:
    """Without the server, skip the test, but fail it where all must run."""
    if not _SERVER.exists() or shutil.which("epmd") is None:
        reason = "no RabbitMQ; it is in the system's package rabbitmq-server"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
