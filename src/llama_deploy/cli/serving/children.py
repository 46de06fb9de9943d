"""The processes in which `llamactl serve` runs the steps.

This module imports little, because they start before this process has imported what it needs itself.
"""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn, Self

from llama_deploy.cli.serving.signal_notes import note_in_handler
from llama_deploy.supervisor.child_process import ChildCommand
from llama_deploy.supervisor.health_board import HealthBoard
from llama_deploy.supervisor.supervisor import Stop, Supervisor


@dataclass(slots=True, eq=False)
class Children:
    """Children that run the command of this process, with their supervisor in a thread. `close` them."""

    processes: int
    """How many."""
    ready: Future[tuple[list[dict[str, Any]], list[int]]] = field(default_factory=Future, init=False)
    """Once all are ready: the definitions of their services as JSON, and their process ids."""
    ended: Future[int] = field(default_factory=Future, init=False)
    """Once all have ended: see `Supervisor.run`."""
    board: HealthBoard = field(default_factory=HealthBoard, init=False)
    """How they are."""
    supervisor: Supervisor = field(init=False)

    @classmethod
    def start(cls, processes: int) -> Self:
        """Start children. They load their workflows, and wait for `Supervisor.serve_at`.

        Until this process handles signals itself, Ctrl-C and SIGTERM end it at once, and them with it.
        """
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, _stop_at_once)
        children = cls(processes)
        children.supervisor = Supervisor(
            ChildCommand(ChildCommand.of_this_process()),
            processes=processes,
            board=children.board,
            on_ready=lambda *facts: children.ready.set_result(facts),
        )
        threading.Thread(target=children._run, name="supervisor", daemon=True).start()
        return children

    def _run(self) -> None:
        try:
            code = self.supervisor.run()
        except OSError as exc:
            self.ended.set_exception(exc)
        else:
            self.ended.set_result(code)

    def close(self) -> None:
        """Kill those that have not ended. Idempotent."""
        self.supervisor.request(Stop.KILL)
        self.ended.exception()


def _stop_at_once(signum: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal while nothing has begun."""
    del signum, frame
    note_in_handler("Stopped.")
    os._exit(0)
