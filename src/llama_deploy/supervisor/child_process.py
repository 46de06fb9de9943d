"""One child of a supervisor: a process that runs the steps of services."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from llama_deploy.supervisor.channel import Channel
from llama_deploy.supervisor.link import VARIABLE, ChildPlace
from llama_deploy.supervisor.served_control_plane import ServedControlPlane
from llama_deploy.supervisor.silence import Silence
from llama_deploy.supervisor.step_trail import ExecutingStep, new_memory, read_trail

_STOPPED: Final = frozenset("TtZX")
"""The states in which the operating system does not run a process: stopped, or dead."""


_ADMIN_KEY: Final = "CONTROL_PLANE_ADMIN_KEY"
"""The environment variable with the key that has all rights. Steps must not find it."""


def _environment() -> dict[str, str]:
    """Return what a child inherits: it could read in `/proc` what it removes from its own environment."""
    return {name: value for name, value in os.environ.items() if name.upper() != _ADMIN_KEY}


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """How a child is started. An environment variable tells it what it is."""

    arguments: Sequence[str]
    """The program and its arguments."""
    health_url: str | None = None
    """Where this process answers probes. None: nowhere."""

    @staticmethod
    def of_this_process() -> list[str]:
        """Return the program and the arguments of this process, with the options of the interpreter."""
        return [sys.executable, *sys.orig_argv[1:]]


@dataclass(slots=True, eq=False)
class Instance:
    """An instance of a service in a child."""

    heartbeat: dict[str, Any]
    """Its last heartbeat, as JSON."""
    silence: Silence
    problems: list[str] = field(default_factory=list)
    """What it has told with its last heartbeat: that it does not reach the control plane, or its queue."""


@dataclass(slots=True, eq=False)
class ChildProcess:
    """A child that was started. `close` it when it has ended."""

    process: subprocess.Popen[bytes]
    channel: Channel
    memory: int | None
    """The descriptor of the memory of its `StepTrail`."""
    alone: str | None = None
    """The service whose suspects it runs, each alone. None: it is one of the children that run all tasks."""
    number: int = 0
    """Its place among the children, which its successor gets."""
    metrics: tuple[int, str] = field(default=(0, ""), init=False)
    """The number of the last request for its metrics that it has answered, and its answer."""
    asks_for: set[str] = field(default_factory=set, init=False)
    """The services for which it has asked for a child that runs their suspects."""
    instances: dict[str, Instance] = field(default_factory=dict, init=False)
    """Its instances that have sent a heartbeat, by id."""
    facts: dict[str, Any] = field(default_factory=dict, init=False)
    """What it has said in its `hello`: `connection`, `drain_timeout` and `blocked_limit`."""
    services: list[dict[str, Any]] | None = field(default=None, init=False)
    """The definitions of its services as JSON. None: it is not ready."""
    kill_at: float | None = field(default=None, init=False)
    """When it is killed if it has not ended. None: it need not end."""
    is_done: bool = field(default=False, init=False)
    """Whether it has nothing left to do: it had not begun when the supervisor stopped, or has said so."""
    death: str | None = field(default=None, init=False)
    """Why it was killed, in words. None: it was not."""
    culprits: list[str] = field(default_factory=list, init=False)
    """The tasks whose steps have blocked it, if it was killed for that."""
    is_told_silent: bool = field(default=False, init=False)
    """Whether the log tells that it is silent."""
    descriptor: int | None = field(default=None, init=False)
    """Becomes readable when it has ended. None: the system does not have that."""
    is_ending: bool = field(default=False, init=False)
    """Whether it has closed its end of the channel, as it does when it ends."""
    _knows_control_plane: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if hasattr(os, "pidfd_open"):
            self.descriptor = os.pidfd_open(self.pid)

    @classmethod
    def start(
        cls, command: ChildCommand, *, is_first: bool, alone: str | None = None, number: int = 0
    ) -> Self:
        """Start a child.

        Args:
            command: How.
            is_first: Whether none was started before.
            alone: The service whose suspects it runs. None: it runs all tasks.
            number: Its place among the children.

        Raises:
            OSError: It cannot be started.
        """
        with ExitStack() as failed:
            ours, theirs = socket.socketpair()
            failed.callback(ours.close)
            with theirs:
                memory = new_memory()
                failed.callback(os.close, memory)
                place = ChildPlace(os.getpid(), theirs.fileno(), memory, is_first, alone, command.health_url)
                with _without_interrupts():
                    process = subprocess.Popen(  # noqa: S603 - the command line of this process
                        command.arguments,
                        env={**_environment(), VARIABLE: json.dumps(asdict(place))},
                        pass_fds=(theirs.fileno(), memory),
                    )
            failed.callback(process.wait)
            failed.callback(process.kill)
            ours.setblocking(False)
            child = cls(process, Channel(ours), memory, alone, number)
            failed.pop_all()
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether the operating system runs it: it has not ended and is not stopped."""
        return self.process.poll() is None and _state(self.pid) not in _STOPPED

    @property
    def drain_timeout(self) -> float:
        """Seconds that it may take to end."""
        return float(self.facts.get("drain_timeout", 0.0))

    def receive(self, now: float) -> bool:
        """Take what it has said. False: it has closed its end, or cannot be understood and is killed.

        Args:
            now: The monotonic time.
        """
        with suppress(BlockingIOError):
            try:
                while (messages := self.channel.receive()) is not None:
                    for message in messages:
                        self._take(message, now)
            except (ValueError, KeyError, TypeError):
                self.kill("has sent its supervisor what is not a message")
            return False
        return True

    def _take(self, message: dict[str, Any], now: float) -> None:
        if "hello" in message:
            self.facts = message["hello"]
        elif "ready" in message:
            self.services = message["ready"]
        elif "done" in message:
            self.is_done = True
        elif "alone" in message:
            self.asks_for.add(message["alone"])
        elif "metrics" in message:
            self.metrics = (int(message["metrics"]), str(message["text"]))
        elif "gone" in message:
            self.instances.pop(message["gone"], None)
        elif "beat" in message:
            beat, known = message["beat"], self.instances.get(message["beat"]["instance_id"])
            if known is None:
                known = self.instances[beat["instance_id"]] = Instance(
                    beat, Silence(float(self.facts["blocked_limit"]))
                )
            known.heartbeat = beat
            known.problems = [str(each) for each in message.get("problems", ())]
            known.silence.heard(now, interval=message["interval"], blocked_seconds=beat["blocked_seconds"])
            self.is_told_silent = self.is_told_silent and known.silence.is_silent(now)

    def expect_end(self, at: float) -> None:
        """Let it be killed then, unless it has ended. The earliest time counts."""
        self.kill_at = at if self.kill_at is None else min(at, self.kill_at)

    def tell_control_plane(self, served: ServedControlPlane) -> None:
        """Tell the URL of the control plane that its supervisor runs, once."""
        if not self._knows_control_plane:
            self._knows_control_plane = True
            self.channel.send(
                {
                    "control_plane": served.url,
                    "api_key": served.api_key,
                    "certificates": served.certificates,
                }
            )

    def ask_metrics(self, request: int) -> None:
        """Ask for its metrics; `metrics` has the answer when it has come."""
        with suppress(BlockingIOError):  # it has not read earlier requests
            self.channel.send({"metrics": request})

    def tell_to_stop(self, how: str) -> None:
        """Ask it to `drain` or to `hand_back`."""
        with suppress(BlockingIOError):  # it has not read earlier requests
            self.channel.send({"stop": how})

    def kill(self, reason: str, *, culprits: Sequence[str] = ()) -> None:
        """Kill it, stopped or not. Idempotent.

        Args:
            reason: Why, in words.
            culprits: The tasks that are to blame.
        """
        if self.death is None:
            self.death, self.culprits = reason, list(culprits)
        self.process.send_signal(signal.SIGKILL)

    def executing(self) -> list[ExecutingStep]:
        """Return the steps that it executes; it must not be able to continue with others."""
        return [] if self.memory is None else read_trail(self.memory)

    def close(self) -> None:
        """Release what belongs to it. It must have ended. Idempotent."""
        self.channel.close()
        for descriptor in (self.memory, self.descriptor):
            if descriptor is not None:
                os.close(descriptor)
        self.memory = self.descriptor = None


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let a process that is started here ignore Ctrl-C until it knows that it has a supervisor."""
    found = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, found)


def _state(pid: int) -> str:
    """Return the state of a process as one letter, as `ps` shows it."""
    try:
        # The name of the program, in brackets, may contain anything.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError, IndexError):
        pass
    ps = ["ps", "-o", "state=", "-p", str(pid)]
    shown = subprocess.run(ps, capture_output=True, text=True, check=False)  # noqa: S603 - only a number
    return shown.stdout.strip()[:1] or "X"
