"""Asks children for their metrics, for threads that are asked for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from llama_deploy.metric_texts import merged
from llama_deploy.supervisor.child_process import ChildProcess

PATIENCE: Final = 2.0
"""How many seconds children may take."""


@dataclass(slots=True, eq=False)
class MetricsDesk:
    """Where a supervisor and those who want metrics meet. Only the supervisor calls `serve` and `close`."""

    _changed: threading.Condition = field(default_factory=threading.Condition)
    _asked: int = 0
    """The number of the last request."""
    _passed_on: int = 0
    """The number of the last request that the children have got."""
    _answers: dict[int, tuple[int, str]] = field(default_factory=dict)
    """The last answer of each child by its place: the number of the request, and the text."""
    _is_closed: bool = False

    def ask(self, wake: Callable[[], None]) -> str:
        """Return the metrics of all children that answer in time.

        Args:
            wake: Lets the supervisor call `serve` soon.
        """
        with self._changed:
            self._asked += 1
            request = self._asked
        wake()
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._is_answered(request), PATIENCE)
            answers = sorted(self._answers.items())
        texts = [(text, {"process": str(place)}) for place, (number, text) in answers if number >= request]
        asked = "".join(
            f'llama_deploy_process_answers{{process="{place}"}} {int(number >= request)}\n'
            for place, (number, _) in answers
        )
        head = (
            "# HELP llama_deploy_process_answers Whether a process has answered this request. If not, a step"
            " holds its interpreter.\n# TYPE llama_deploy_process_answers gauge\n"
        )
        return merged([(head + asked, {}), *texts]) if answers else ""

    def _is_answered(self, request: int) -> bool:
        return self._passed_on >= request and all(number >= request for number, _ in self._answers.values())

    def serve(self, children: Sequence[ChildProcess]) -> None:
        """Pass on what was asked, and take the answers."""
        with self._changed:
            if self._passed_on == self._asked and not self._is_waiting:
                return
            for child in children:
                if self._passed_on < self._asked and child.facts:
                    child.ask_metrics(self._asked)
            self._passed_on = self._asked
            self._answers = {child.number: child.metrics for child in children if child.facts}
            self._changed.notify_all()

    @property
    def _is_waiting(self) -> bool:
        """Whether an answer is missing."""
        return any(number < self._passed_on for number, _ in self._answers.values())

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
