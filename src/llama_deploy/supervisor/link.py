"""A child's link to its supervisor."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from queue import SimpleQueue
from types import FrameType
from typing import Any, Final, Self

from llama_deploy.concurrency.forked_children import restore_in_children
from llama_deploy.supervisor.channel import Channel
from llama_deploy.supervisor.served_control_plane import ServedControlPlane
from llama_deploy.supervisor.step_trail import StepTrail

logger = logging.getLogger(__name__)

VARIABLE: Final = "LLAMA_DEPLOY_SUPERVISOR"
"""The environment variable that makes a command the child of a supervisor."""
_PR_SET_PDEATHSIG: Final = 1
ORPHANED: Final = 70
"""The exit code of a child whose supervisor is gone (`EX_SOFTWARE` of `sysexits.h`)."""


@dataclass(frozen=True, slots=True)
class ChildPlace:
    """What a supervisor tells its child in `VARIABLE`, as JSON."""

    parent: int
    """The process id of the supervisor."""
    channel: int
    """The descriptor of the child's end of the channel."""
    memory: int
    """The descriptor of the memory of its `StepTrail`."""
    is_first: bool = True
    """Whether no child was started before."""
    alone: str | None = None
    """The service whose suspects the child runs, each alone, and nothing else. None: it runs all services."""
    health_url: str | None = None
    """Where the supervisor answers probes. None: nowhere."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read it. The supervisor may be of another release, if the package was upgraded meanwhile."""
        names = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in names})


@dataclass(slots=True, eq=False)
class SupervisorLink:
    """Tells the supervisor how this process is doing, and obeys it. Ends this process if it is gone."""

    place: ChildPlace
    trail: StepTrail
    _channel: Channel
    _control_plane: SimpleQueue[ServedControlPlane] = field(default_factory=SimpleQueue, init=False)
    _on_stop: Callable[[str], object] | None = field(default=None, init=False)
    _metrics: Callable[[], str] | None = field(default=None, init=False)
    _stops: list[str] = field(default_factory=list, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _outbox: dict[str, bytes] = field(default_factory=dict, init=False)
    """What is not sent yet: for each instance its last message, under an empty id that of the process, and
    what is asked for each service."""
    _has_mail: threading.Event = field(default_factory=threading.Event, init=False)

    @classmethod
    def from_environment(cls) -> Self | None:
        """Return the link of this process, None if it has no supervisor. Call it once, in the main thread.

        The processes that this one starts have no supervisor.
        """
        text = os.environ.pop(VARIABLE, None)
        if text is None:
            return None
        place = ChildPlace.from_json(text)
        _end_with(place.parent)
        os.set_inheritable(place.channel, False)
        trail = StepTrail(place.memory)
        os.close(place.memory)
        link = cls(place, trail, Channel(socket.socket(fileno=place.channel)))
        # The supervisor tells what a Ctrl-C means, which all processes of a terminal get. Programs that steps
        # start would inherit that a signal is ignored, but no handler. See also `ChildProcess.start`.
        signal.signal(signal.SIGINT, _do_nothing)
        restore_in_children(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for work in (link._obey, link._pass_on):
            threading.Thread(target=work, name="supervisor-link", daemon=True).start()
        return link

    def control_plane(self) -> ServedControlPlane:
        """Return where the control plane is that the supervisor runs. Waits until it runs. Call it once."""
        return self._control_plane.get()

    def hello(self, facts: dict[str, Any]) -> None:
        """Tell what the supervisor needs to know to beat for this process; see `ChildProcess`.

        Call it before anything else.
        """
        self._channel.send({"hello": facts})

    def ready(self, services: list[dict[str, Any]]) -> None:
        """Tell that the services accept tasks.

        Args:
            services: Their definitions as JSON.
        """
        self._send_soon("", {"ready": services})

    def beat(
        self, instance_id: str, heartbeat: bytes, *, interval: float, problems: Sequence[str] = ()
    ) -> None:
        """Pass on a heartbeat that is about to be sent. Does not wait: the supervisor may be stopped.

        Args:
            instance_id: The instance.
            heartbeat: The heartbeat as JSON.
            interval: Seconds until the next one.
            problems: What the instance cannot do, although it runs.
        """
        further = json.dumps({"interval": interval, "problems": list(problems)}).encode()
        self._outbox[instance_id] = b'{"beat":%b,%b' % (heartbeat, further[1:])
        self._has_mail.set()

    def forget(self, instance_id: str) -> None:
        """Tell that an instance sends no heartbeats any more."""
        self._send_soon(instance_id, {"gone": instance_id})

    def ask_alone(self, service_name: str) -> None:
        """Ask for a process in which a task of a service runs alone. Asking again changes nothing."""
        self._send_soon(f"\n{service_name}", {"alone": service_name})  # no id of an instance has line breaks

    def tell_metrics(self, text: Callable[[], str]) -> None:
        """Let the supervisor have the metrics of this process, when it asks. `text` is called in a thread."""
        self._metrics = text

    def done(self) -> None:
        """Tell that nothing is left to do but to end."""
        self._channel.send({"done": True})

    def on_stop(self, callback: Callable[[str], object]) -> None:
        """Call `callback` in another thread with each request to stop: `drain`, then perhaps `hand_back`."""
        with self._lock:
            self._on_stop = callback
            stops, self._stops = self._stops, []
        for how in stops:
            callback(how)

    def _send_soon(self, instance_id: str, message: dict[str, Any]) -> None:
        self._outbox[instance_id] = json.dumps(message).encode()
        self._has_mail.set()

    def _pass_on(self) -> None:
        """Send what waits. Nobody who has something to say has to wait for a supervisor that is stopped."""
        while True:
            self._has_mail.wait()
            self._has_mail.clear()
            for instance_id in list(self._outbox):
                self._channel.send_line(self._outbox.pop(instance_id))

    def _obey(self) -> None:
        while (messages := self._channel.receive()) is not None:
            for message in messages:
                if "control_plane" in message:
                    served = ServedControlPlane(
                        message["control_plane"],
                        message.get("api_key"),
                        tuple(message.get("certificates", ())),
                    )
                    self._control_plane.put(served)
                elif "metrics" in message:
                    self._send_metrics(message["metrics"])
                else:
                    self._stop(message["stop"])
        os._exit(ORPHANED)

    def _send_metrics(self, request: int) -> None:
        text = ""
        try:
            text = "" if self._metrics is None else self._metrics()
        except Exception:
            # A collector of the user's own code may raise anything; this thread has to go on.
            logger.exception("the metrics cannot be read", extra={"action": "metrics_failed"})
        # Ids of instances and names of services have no line breaks.
        self._send_soon("\nmetrics", {"metrics": request, "text": text})

    def _stop(self, how: str) -> None:
        with self._lock:
            callback = self._on_stop
            if callback is None:
                self._stops.append(how)
        if callback is not None:
            callback(how)


def _do_nothing(_signum: int, _frame: FrameType | None) -> None:
    """Handle a signal."""


def _end_with(parent: int) -> None:
    """Let this process be killed when its parent ends, where the system can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ORPHANED)  # it has ended already
