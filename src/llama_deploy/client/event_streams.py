"""Event streams: lines in, events out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, Final, Generic, TypeVar

import pydantic_core
from pydantic import TypeAdapter

from llama_deploy.client.operation import Clock, Deadline, Patience, Pause, parse, segment
from llama_deploy.errors import InternalServerError, LlamaDeployError, UnavailableError
from llama_deploy.types import TaskEvent
from llama_deploy.web.http_connection import HttpRequest

T = TypeVar("T")

_EVENT: Final = TypeAdapter(TaskEvent)
_OBJECT: Final = TypeAdapter(dict[str, Any])


class LineStream(ABC, Generic[T]):
    """Reads items from a stream of lines, over as many connections as it takes.

    The driver makes the `request`, hands each line to `feed` and, when the answer ends or breaks before
    `finished`, asks `interrupted` how long to pause before it makes the `request` again.
    """

    finished: bool = False
    """Whether the last item has been read."""

    @abstractmethod
    def request(self) -> HttpRequest:
        """Return the request for what has not been read yet."""

    @abstractmethod
    def feed(self, line: bytes) -> T | None:
        """Return the item that a line holds, None if it holds none.

        Raises:
            InternalServerError: The line is not of the expected form.
        """

    @abstractmethod
    def interrupted(self, error: UnavailableError | None) -> Pause | None:
        """Return the pause before the next request; None: there is nothing more to read.

        Args:
            error: Why the answer broke. None: it ended.

        Raises:
            UnavailableError: It is no use to try again.
        """


class EventStream(LineStream[TaskEvent]):
    """The events of a task, each once and in order, from a cursor to the terminal one.

    Args:
        task_id: The task.
        after: The index of the last event that is known already; -1 for none.
        patience: Seconds to try again without a line from the control plane, keep-alives included.
        clock: Tells the time.
    """

    def __init__(
        self, task_id: str, *, after: int = -1, patience: float, clock: Clock = time.monotonic
    ) -> None:
        self.task_id = task_id
        self.after = after
        self._seconds = patience
        self._clock = clock
        self._progress()

    def _progress(self) -> None:
        self._patience = Patience()
        self._deadline = Deadline(self._seconds, self._clock)

    def request(self) -> HttpRequest:
        """Ask for the events after the last one read."""
        return HttpRequest("GET", f"/tasks/{segment(self.task_id)}/events", params={"after": self.after})

    def feed(self, line: bytes) -> TaskEvent | None:
        """Return the event of a line; None for a keep-alive and for an event that was read before."""
        self._progress()
        if not line.strip():
            return None
        event = parse(_decode(line), _EVENT, source=f"the event stream of task {self.task_id}")
        if event.index <= self.after:
            return None
        self.after = event.index
        self.finished = event.terminal
        return event

    def interrupted(self, error: UnavailableError | None) -> Pause | None:
        """Go on until the terminal event, unless nothing came for too long."""
        if self.finished:
            return None
        cause: LlamaDeployError = error or UnavailableError(
            f"the event stream of task {self.task_id} ended before its terminal event"
        )
        left = self._deadline.remaining()
        if left <= 0:
            raise cause
        return Pause(min(self._patience.pause_after(cause), left))


class ObjectStream(LineStream[dict[str, Any]]):
    """JSON objects, one a line, from a server that cannot continue a stream: it is read once.

    Args:
        request: The request.
    """

    def __init__(self, request: HttpRequest) -> None:
        self._request = request

    def request(self) -> HttpRequest:
        """Ask for the stream from its start."""
        return self._request

    def feed(self, line: bytes) -> dict[str, Any] | None:
        """Return the object of a line; None for a keep-alive."""
        return parse(_decode(line), _OBJECT, source=self._request.path) if line.strip() else None

    def interrupted(self, error: UnavailableError | None) -> Pause | None:
        """End with the answer."""
        if error is not None:
            raise error
        return None


def _decode(line: bytes) -> Any:
    try:
        return pydantic_core.from_json(line)
    except ValueError as exc:
        raise InternalServerError(f"a line of an event stream is not JSON: {line[:80]!r}") from exc
