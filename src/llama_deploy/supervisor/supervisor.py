"""Starts the processes that run the steps, watches them, and replaces those that end or block."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from llama_deploy.supervisor.child_process import ChildCommand, ChildProcess, Instance
from llama_deploy.supervisor.health_board import HealthBoard, checks_of
from llama_deploy.supervisor.metrics_desk import MetricsDesk
from llama_deploy.supervisor.reports import Reports, death_of
from llama_deploy.supervisor.served_control_plane import ServedControlPlane
from llama_deploy.supervisor.silence import Verdict
from llama_deploy.supervisor.start_backoff import StartBackoff
from llama_deploy.supervisor.step_trail import ExecutingStep

logger = logging.getLogger(__name__)

CHILD_GRACE: Final = 1.0
"""How many seconds after its `drain_timeout` a child ends by itself, unless its interpreter is held."""
_GRACE: Final = CHILD_GRACE + 0.25
"""After how many seconds it is killed, so that its supervisor has time to end too."""
_ENDING_SECONDS: Final = 0.01
"""How often to look whether a child has ended that has closed its channel."""
_LOOK_EVERY: Final = 1.0
"""Seconds after which the supervisor looks at its children at the latest."""
_CLOSED_SECONDS: Final = 5.0
"""How long a child may take to end that has closed its channel."""
_MAX_NAMED: Final = 3
"""How many steps are named in a sentence."""
_REPORT_SECONDS: Final = 1.0
"""How long the supervisor itself waits for its last reports."""


class Stop(StrEnum):
    """How children stop."""

    DRAIN = "drain"
    """They let running tasks end, within their `drain_timeout`."""
    HAND_BACK = "hand_back"
    """They hand back their tasks, which run elsewhere."""
    KILL = "kill"
    """They are killed."""


@dataclass(slots=True, eq=False)
class Supervisor:
    """Runs `processes` children in `run`, until it is stopped.

    When a child asks for it, there is another one for the suspects of a service, as long as it has some.

    Args:
        command: How a child is started.
        processes: How many children there are.
        on_ready: Called once, in the thread of `run`, with the definitions of the services as JSON and the
            ids of the processes, when all children are ready.
        board: Where the health of the children is told.
    """

    command: ChildCommand
    processes: int
    on_ready: Callable[[list[dict[str, Any]], list[int]], object] | None = None
    board: HealthBoard = field(default_factory=HealthBoard)
    _children: list[ChildProcess] = field(default_factory=list, init=False)
    _starts: list[float] = field(default_factory=list, init=False)
    """When further children are to be started."""
    _unstarted: int = field(default=0, init=False)
    """How many children wait until one has loaded the workflows: if they cannot be loaded, one tells it."""
    _backoff: StartBackoff = field(default_factory=StartBackoff, init=False)
    _backoff_alone: defaultdict[str, StartBackoff] = field(
        default_factory=lambda: defaultdict(StartBackoff), init=False
    )
    """Of the children that run suspects, by service."""
    _has_started: bool = field(default=False, init=False)
    """Whether any child was started."""
    _was_ready: bool = field(default=False, init=False)
    """Whether any child was ready."""
    _is_announced: bool = field(default=False, init=False)
    _stop: Stop | None = field(default=None, init=False)
    """How the children were told to stop. None: they were not."""
    _requested: Stop | None = field(default=None, init=False)
    """How they are to stop. Set by another thread, or by a signal handler."""
    _exit_code: int = field(default=0, init=False)
    _control_plane: ServedControlPlane | None = field(default=None, init=False)
    """See `serve_at`. Set by another thread."""
    _reports: Reports = field(default_factory=Reports, init=False)
    _metrics: MetricsDesk = field(default_factory=MetricsDesk, init=False)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector, init=False)
    _wake: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair, init=False)

    def request(self, stop: Stop) -> None:
        """Ask the children to stop; `run` returns when they have ended. Thread-safe, and reentrant."""
        self._requested = stop
        self._wake_up()

    def serve_at(self, control_plane: ServedControlPlane) -> None:
        """Let the children begin to work for the control plane of this process. Thread-safe.

        Until then they only load their workflows; those of `llamactl worker` know a control plane themselves.
        """
        self._control_plane = control_plane
        self._wake_up()

    def metrics(self) -> str:
        """Return the metrics of all children, each sample with the place of its process. Thread-safe; waits.

        A child that does not answer in time, because a step holds its interpreter, is missing.
        """
        return self._metrics.ask(self._wake_up)

    def _wake_up(self) -> None:
        with suppress(OSError):  # it has ended already, or is woken already
            self._wake[1].send(b"\0", socket.MSG_DONTWAIT)

    def run(self) -> int:
        """Run the children until `request` was called and they have ended. Blocks. Call it once.

        Returns:
            0 if the children have ended as they should. Otherwise the exit code of one that has not, negative
            for the signal that has killed it; of one that has failed before any was ready.

        Raises:
            OSError: No child can be started.
        """
        self._selector.register(self._wake[0], selectors.EVENT_READ, None)
        self._starts = [time.monotonic()]
        self._unstarted = self.processes - 1
        try:
            while self._children or (self._starts and self._stop is None):
                self._start_due(time.monotonic())
                self._tell_control_plane()
                self._wait()
                self._metrics.serve(self._children)
                self._start_asked()
                self._reap()
                self._obey()
                self._watch(time.monotonic())
                self._tell_health(time.monotonic())
        finally:
            for child in self._children:
                child.kill("its supervisor stops")
                child.process.wait()
                self._remove(child)
            self._reports.wait(_REPORT_SECONDS)
            self._metrics.close()
            self._selector.close()
            for each in self._wake:
                each.close()
        return self._exit_code

    def _start_due(self, now: float) -> None:
        due = [at for at in self._starts if at <= now and self._stop is None]
        for at in due:
            self._starts.remove(at)
            try:
                self._start()
            except OSError as exc:
                if not self._children and not self._was_ready:
                    raise
                _log_failed_start(exc, delay=self._start_later())

    def _start(self, *, alone: str | None = None) -> ChildProcess:
        taken = {each.number for each in self._children}
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        child = ChildProcess.start(self.command, is_first=not self._has_started, alone=alone, number=number)
        self._has_started = True
        self._children.append(child)
        self._selector.register(child.channel.socket, selectors.EVENT_READ, child)
        if child.descriptor is not None:
            self._selector.register(child.descriptor, selectors.EVENT_READ, child)
        return child

    def _start_asked(self) -> None:
        """Start a child for the suspects of each service for which one has asked, unless it has one.

        What is asked for in the pause after a failed start is dropped: a later heartbeat asks again.
        """
        asked: set[str] = set()
        for child in self._children:
            asked |= child.asks_for
            child.asks_for.clear()
        for service in sorted(asked - {child.alone for child in self._children}):
            now, backoff = time.monotonic(), self._backoff_alone[service]
            if self._stop is not None or not backoff.may_start(now):
                continue
            try:
                child = self._start(alone=service)
            except OSError as exc:
                _log_failed_start(exc, delay=backoff.failed(now))
                continue
            logger.warning(
                "process %d runs tasks of service %s alone, one at a time, because their processes have died",
                child.pid,
                service,
                extra={"action": "process_for_suspects", "pid": child.pid, "service_name": service},
            )

    def _tell_control_plane(self) -> None:
        if self._control_plane is not None:
            for child in self._children:
                child.tell_control_plane(self._control_plane)

    def _wait(self) -> None:
        """Wait until something has happened or is due, and take what the children have said."""
        now = time.monotonic()
        times = [now + _LOOK_EVERY, *self._starts]
        times += [child.kill_at for child in self._children if child.kill_at is not None]
        for child in self._children:
            if child.is_ending:
                times.append(now + _ENDING_SECONDS)
            elif child.death is None:
                judged = [each.silence.next_at() for each in child.instances.values()]
                times += [at for at in judged if at is not None]
        for key, _ in self._selector.select(max(0.0, min(times) - now)):
            child = key.data
            if child is None:
                self._wake[0].recv(1024)
            elif key.fileobj is child.channel.socket and not child.receive(time.monotonic()):
                self._selector.unregister(child.channel.socket)
                child.is_ending = True
                child.expect_end(time.monotonic() + _CLOSED_SECONDS)
        self._announce()

    def _announce(self) -> None:
        if self._unstarted and any(child.facts for child in self._children):
            self._starts += [time.monotonic()] * self._unstarted
            self._unstarted = 0
        ready = [child for child in self._children if child.services is not None and child.alone is None]
        if ready:
            self._was_ready = True
            self._backoff.succeeded()
        if self.on_ready is not None and not self._is_announced and len(ready) == self.processes:
            self._is_announced = True
            self.on_ready(ready[0].services or [], [child.pid for child in ready])

    def _reap(self) -> None:
        """Remove the children that have ended, and arrange for others in their place."""
        for child in [each for each in self._children if each.process.poll() is not None]:
            self._remove(child)
            self._ended(child)
        if os.getpid() == 1:
            _reap_orphans([child.pid for child in self._children])

    def _remove(self, child: ChildProcess) -> None:
        child.receive(time.monotonic())
        self._children.remove(child)
        for source in (child.channel.socket, child.descriptor):
            if source is not None and source in self._selector.get_map():
                self._selector.unregister(source)
        child.close()

    def _ended(self, child: ChildProcess) -> None:
        code, is_ready = child.process.returncode, child.services is not None
        reason = child.death or _in_words(code)
        if child.instances:
            self._reports.report_death(
                child.facts["connection"],
                death_of(list(child.instances), reason=reason, culprits=child.culprits),
            )
        if self._stop is not None:
            was_killed_late = child.is_done and code < 0
            self._exit_code = self._exit_code or (0 if was_killed_late else code)
            return
        if child.alone is not None:
            self._ended_alone(child, child.alone, reason)
            return
        # With 0 it ends if a workflow's module ends it, or, after its hello, if it was told to stop alone.
        if not self._was_ready and not is_ready and (code > 0 or (code == 0 and not child.facts)):
            self._exit_code = code
            self.request(Stop.DRAIN)
            return
        delay = 0.0
        if is_ready:
            self._starts.append(time.monotonic())
        else:
            delay = self._start_later()
        logger.warning(
            "process %d %s; another one takes its place%s",
            child.pid,
            reason,
            f" in {delay:g} s, because it was not ready yet" if delay else "",
            extra={"action": "process_ended", "pid": child.pid},
        )

    def _ended_alone(self, child: ChildProcess, service: str, reason: str) -> None:
        """A child that ran suspects has ended. If others wait, a child asks for another one."""
        delay, backoff = 0.0, self._backoff_alone[service]
        if child.services is not None:
            backoff.succeeded()
        else:
            delay = backoff.failed(time.monotonic())
        _log_end_alone(child, reason, delay=delay)

    def _start_later(self) -> float:
        """Start a child after a start has failed; return in how many seconds."""
        now = time.monotonic()
        delay = self._backoff.failed(now)
        self._starts.append(now + delay)
        return delay

    def _obey(self) -> None:
        """Tell the children to stop if that was requested."""
        requested, self._requested = self._requested, None
        if requested is None or requested == self._stop:
            return
        self._stop = requested
        now = time.monotonic()
        for child in self._children:
            if requested is Stop.KILL or not child.facts:
                child.is_done = True
                child.kill("was stopped")
                continue
            child.tell_to_stop(requested.value)
            child.expect_end(now + _GRACE + (child.drain_timeout if requested is Stop.DRAIN else 0.0))

    def _watch(self, now: float) -> None:
        """Repeat the heartbeats of silent children, and kill those that are blocked or do not end."""
        for child in self._children:
            if child.kill_at is not None and now >= child.kill_at:
                child.kill_at = None
                self._end_late(child)
            is_running = child.is_running
            for instance in child.instances.values():
                self._judge(child, instance, now, is_running=is_running)

    def _tell_health(self, now: float) -> None:
        is_stopping = self._stop is not None
        self.board.post(checks_of(self._children, processes=self.processes, is_stopping=is_stopping, now=now))

    def _end_late(self, child: ChildProcess) -> None:
        """Kill a child that was asked to end."""
        running = _of(child.executing())
        child.kill(f"has not ended in time{running and f', held up{running}'}")
        if not child.is_done:
            logger.warning(
                "process %d %s; it is killed", child.pid, child.death, extra={"action": "process_killed"}
            )

    def _judge(self, child: ChildProcess, instance: Instance, now: float, *, is_running: bool) -> None:
        verdict = instance.silence.judge(now, is_running=is_running)
        if verdict is Verdict.FINE:
            return
        steps, seconds = child.executing(), instance.silence.seconds(now)
        if verdict is Verdict.REPEAT:
            if seconds and not child.is_told_silent and child.death is None:
                child.is_told_silent = True
                logger.warning(
                    "process %d has been silent for %.1f s%s; its other tasks wait",
                    child.pid,
                    seconds,
                    _of(steps),
                    extra={"action": "process_silent", "pid": child.pid},
                )
            beat = instance.heartbeat
            blocked = [_blocked(step) for step in steps] or beat.get("blocked", [])
            busy = {step.task_id for step in steps}
            held = [_later(each, seconds) if each["task_id"] in busy else each for each in beat["held"]]
            repeated = {**beat, "held": held, "blocked_seconds": seconds, "blocked": blocked}
            self._reports.repeat(child.facts["connection"], repeated)
        elif child.death is None:
            if not instance.silence.is_silent(now) and any(step.is_in_loop for step in steps):
                # Its threads run, so those of other steps are not to blame.
                steps = [step for step in steps if step.is_in_loop]
            known = [each["task_id"] for each in instance.heartbeat.get("blocked", []) if each["task_id"]]
            child.kill(
                f"was blocked for {seconds:.0f} s{_of(steps)}",
                culprits=[step.task_id for step in steps] or known,
            )


def _log_failed_start(exc: OSError, *, delay: float) -> None:
    logger.warning(
        "a process cannot be started: %s; trying again in %g s",
        exc,
        delay,
        extra={"action": "process_start_failed"},
    )


def _log_end_alone(child: ChildProcess, reason: str, *, delay: float) -> None:
    is_idle = child.process.returncode == 0 and child.is_done
    logger.log(
        logging.INFO if is_idle else logging.WARNING,
        "process %d, which %s tasks of service %s alone, %s%s",
        child.pid,
        "was to run" if delay else "ran",
        child.alone,
        "has ended, because none waits" if is_idle else reason,
        f"; the next one is started in {delay:g} s at the earliest, because it was not ready yet"
        if delay
        else "",
        extra={"action": "process_ended", "pid": child.pid},
    )


def _of(steps: list[ExecutingStep]) -> str:
    """Return which steps are to blame, for a sentence."""
    if not steps:
        return ""
    named = [f"the step {step.step_name!r} of task {step.task_id}" for step in steps[:_MAX_NAMED]]
    if len(steps) > _MAX_NAMED:
        named.append(f"{len(steps) - _MAX_NAMED} more")
    return " by " + ", ".join(named)


def _later(held: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return a held attempt whose run has worked on since the heartbeat."""
    used = held.get("running_seconds")
    return held if used is None else {**held, "running_seconds": used + seconds}


def _blocked(step: ExecutingStep) -> dict[str, Any]:
    return {"task_id": step.task_id, "step": step.step_name, "seconds": step.seconds}


def _in_words(code: int) -> str:
    if code >= 0:
        return f"has ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _reap_orphans(ours: list[int]) -> None:
    """As process 1, reap orphaned processes that have ended."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in ours:
            return
        os.waitpid(found.si_pid, os.WNOHANG)
