"""What a supervisor knows of the health of its children, for threads that are asked about it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from llama_deploy.health import PASSED, Check, Checks, failed
from llama_deploy.supervisor.child_process import ChildProcess, Instance

_STALE_SECONDS: Final = 15.0
"""A supervisor that has not looked at its children for so long is not healthy itself."""
_MAX_NAMED: Final = 3
"""How many steps are named in a sentence."""


@dataclass(slots=True, eq=False)
class HealthBoard:
    """The last checks of a supervisor. Thread-safe: `post` replaces all of them at once."""

    _posted: tuple[float, Checks] = field(
        default_factory=lambda: (time.monotonic(), {"processes": failed("no process was started yet")})
    )

    def post(self, checks: Checks) -> None:
        """Replace the checks."""
        self._posted = (time.monotonic(), checks)

    def checks(self) -> Checks:
        """Return the checks: `supervisor`, and those that were posted last."""
        _, checks = self._posted
        return {"supervisor": self.supervisor(), **checks}

    def supervisor(self) -> Check:
        """Return whether the supervisor looks after its children."""
        silent = time.monotonic() - self._posted[0]
        if silent < _STALE_SECONDS:
            return PASSED
        return failed(f"the supervisor has not looked at its processes for {silent:.0f} s; restart it")


def checks_of(
    children: Sequence[ChildProcess], *, processes: int, is_stopping: bool, now: float
) -> dict[str, Check]:
    """Return a check of all children together, and one for each.

    Those that run suspects come and go: they do not count among those that there are to be.

    Args:
        children: Those that run.
        processes: How many there are to be, without those that run suspects.
        is_stopping: Whether they were asked to stop.
        now: The monotonic time.
    """
    together = PASSED
    running = sum(child.alone is None for child in children)
    if is_stopping:
        together = failed("it is stopping, and takes no new tasks")
    elif running < processes:
        together = failed(f"{running} of {processes} processes run; the others are about to be started")
    outcomes = {"processes": together}
    for child in children:
        reason = problem_of(child, now)
        outcomes[f"process {child.pid}"] = PASSED if reason is None else failed(reason)
    return outcomes


def problem_of(child: ChildProcess, now: float) -> str | None:
    """Return why a child does not work on tasks as it should, None if it does.

    A child for suspects starts and ends as needed: that is no problem.
    """
    transient = child.death or _stage_of(child)
    if transient is not None:
        return transient if child.alone is None else None
    for instance in child.instances.values():
        problem = _problem_of_instance(child, instance, now)
        if problem is not None:
            return problem
    return None


def _stage_of(child: ChildProcess) -> str | None:
    """Return how far a child is that starts or ends, None if it does neither."""
    if child.is_ending:
        return "it is ending"
    if child.services is None:
        return "it has not joined the control plane yet"
    if len(child.instances) < len(child.services):
        return "not all of its services have sent a heartbeat yet"
    return None


def _problem_of_instance(child: ChildProcess, instance: Instance, now: float) -> str | None:
    silence = instance.silence
    if silence.is_stopped:
        return "it is stopped, as by SIGSTOP or a debugger"
    if seconds := silence.seconds(now):
        return f"it has been blocked for {seconds:.1f} s{_by(instance, child)}; its other tasks wait"
    if silence.is_silent(now):
        return "its heartbeat is late"
    return "; ".join(instance.problems) or None


def _by(instance: Instance, child: ChildProcess) -> str:
    """Return which steps block it, for a sentence."""
    told = [(each.get("step"), each.get("task_id")) for each in instance.heartbeat.get("blocked", ())]
    steps = told or [(each.step_name, each.task_id) for each in child.executing()]
    named = [f"the step {step!r} of task {task_id}" for step, task_id in steps if task_id][:_MAX_NAMED]
    return " by " + ", ".join(named) if named else ""
