"""A RabbitMQ server, from the system's package `rabbitmq-server`."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final

from llama_deploy.testing.processes import free_port
from tests.servers.process import HOST, ServerProcess, missing

# The one in the path is the packagers' wrapper, which becomes another user and writes to the system's logs.
_SERVER: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_CONTROL: Final = _SERVER.with_name("rabbitmqctl")
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


class RabbitMQServer(ServerProcess):
    """One node.

    Args:
        folder: Where it keeps everything; what is there, it takes up again.
        settings: More lines for its `rabbitmq.conf`.
    """

    patience_seconds: ClassVar[float] = 60.0

    def __init__(self, folder: Path, *settings: str) -> None:
        super().__init__(folder)
        self.url = f"amqp://guest:guest@{HOST}:{self.port}/"
        self._mapper = _PortMapper(folder)
        config = _CONFIG.format(port=self.port, more="\n".join(settings))
        (folder / "rabbitmq.conf").write_text(config)
        (folder / "enabled_plugins").write_text("[].")
        (folder / "environment").touch()

    def start(self) -> None:
        """Start it and wait until it answers, again after it was killed."""
        # Erlang would start its port mapper as a daemon that stays.
        self._mapper.start()
        super().start()

    def kill(self) -> None:
        """End it as a power cut would, but for what the system holds of its files. Idempotent."""
        super().kill()
        self._mapper.kill()

    def control(self, *arguments: str) -> None:
        """Do what an operator does, such as `control("change_password", "guest", "new")`."""
        environment = self._environment()
        command = [str(_CONTROL), "-n", environment["RABBITMQ_NODENAME"], *arguments]
        subprocess.run(command, env=environment, check=True, capture_output=True)

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

    def _command(self) -> list[str]:
        return [str(_SERVER)]

    def _answers(self) -> bool:
        """Whether it answers as AMQP does, with the begin of its first frame."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as probe:
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                return probe.recv(1) == b"\x01"
        except OSError:
            return False

    def _signal(self, process: subprocess.Popen[bytes], signum: int) -> None:
        # A shell script and its children: they have a process group of their own.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signum)

    def _options(self) -> dict[str, Any]:
        return {"env": self._environment(), "start_new_session": True}

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")}
        return {
            **kept,
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self._mapper.port),
            "ERL_EPMD_ADDRESS": HOST,
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


class _PortMapper(ServerProcess):
    """What the nodes of a machine register with."""

    def _command(self) -> list[str]:
        program = shutil.which("epmd")
        if program is None or not _SERVER.exists():
            missing("no RabbitMQ; it is in the system's package rabbitmq-server")
        return [program, "-port", str(self.port), "-address", HOST]
