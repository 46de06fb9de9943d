"""The commands that run workflows in the processes of a supervisor.

`supervise` imports nothing that workflows need: its process stays small.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.output import note
from llama_deploy.supervisor.child_process import ChildCommand
from llama_deploy.supervisor.supervisor import Stop, Supervisor

_SAME_PRESS_SECONDS: Final = 0.3
"""Ctrl-C twice within this time counts once: a terminal and a wrapper may both send the signal."""


@dataclass(slots=True, eq=False)
class StopRequests:
    """What each request to stop means: drain, then hand back tasks, then exit at once.

    Args:
        on_stop: Called with each of the first two.
    """

    on_stop: Callable[[Stop], None]
    _requests: int = field(default=0, init=False)
    _last: float = field(default=0.0, init=False)

    def terminate(self) -> None:
        """SIGTERM: drain; a repeated signal has no effect."""
        if self._requests == 0:
            self._request(Stop.DRAIN, "Waiting for running tasks, then stopping.")

    def interrupt(self) -> None:
        """Ctrl-C: drain, then hand back tasks, then exit."""
        if self._requests and time.monotonic() - self._last < _SAME_PRESS_SECONDS:
            return
        if self._requests == 0:
            self._request(
                Stop.DRAIN,
                "Waiting for running tasks, then stopping. Press Ctrl-C again to hand them back now.",
            )
        elif self._requests == 1:
            self._request(Stop.HAND_BACK, "Handing back the running tasks. Press Ctrl-C again to exit now.")
        else:
            os._exit(ExitCode.INTERRUPTED)  # the children end with this process

    def _request(self, stop: Stop, message: str) -> None:
        self._requests += 1
        self._last = time.monotonic()
        note(message)
        self.on_stop(stop)


def supervise(*, processes: int) -> int:
    """Run this command in `processes` children until Ctrl-C or SIGTERM; return the exit code."""
    supervisor = Supervisor(ChildCommand(), processes=processes)
    stops = StopRequests(supervisor.request)
    signal.signal(signal.SIGINT, lambda *_: stops.interrupt())
    signal.signal(signal.SIGTERM, lambda *_: stops.terminate())
    code = supervisor.run()
    if code == 0:
        note("Stopped.")
    return code
