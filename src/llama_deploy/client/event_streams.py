"""Event streams: lines in, events out. No I/O."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import pydantic_core

from llama_deploy.client.deadline import Clock, Deadline, pause_after
from llama_deploy.client.paths import task_path
from llama_deploy.errors import InternalServerError, UnavailableError
from llama_deploy.types import TaskEvent
from llama_deploy.web.answers import as_object, read_answer
from llama_deploy.web.http_exchange import HttpRequest

T = TypeVar("T")


class LineStream(ABC, Generic[T]):
    """Reads items from a stream of lines, over as many connections as it takes.

    The caller makes the `request` and passes each line of the response to `feed`. When the response ends or
    breaks, it asks `interrupted` whether and when to make the `request` again.
    """

    finished: bool = False
    """Whether the last item has been read."""

    @abstractmethod
    def request(self) -> HttpRequest:
        """Return the request for everything that has not been read yet."""

    @abstractmethod
    def feed(self, line: bytes) -> T | None:
        """Return the item in a line, None if the line has no new item.

        Raises:
            InternalServerError: The line does not have the expected form.
        """

    @abstractmethod
    def interrupted(self, error: UnavailableError | None) -> float | None:
        """Return the seconds to wait before the next request, None to stop reading.

        Args:
            error: Why the response broke. None: it ended.

        Raises:
            UnavailableError: The stream is incomplete, and retrying does not help.
        """


class EventStream(LineStream[TaskEvent]):
    """The events of a task, each once and in order, up to the terminal one.

    Args:
        task_id: The task.
        after: The index of the last event that the caller knows; -1 for none.
        timeout: Seconds to retry while the control plane sends nothing, not even keep-alives.
        clock: The clock for `timeout`.
    """

    def __init__(
        self, task_id: str, *, after: int = -1, timeout: float, clock: Clock = time.monotonic
    ) -> None:
        self.task_id = task_id
        self.after = after
        self._timeout = timeout
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._failures = 0
        self._deadline = Deadline(self._timeout, self._clock)

    def request(self) -> HttpRequest:
        """Return the request for the events after the last one read."""
        return HttpRequest("GET", task_path(self.task_id) + "/events", params={"after": self.after})

    def feed(self, line: bytes) -> TaskEvent | None:
        """Return the event in a line; None for a keep-alive and for an event that was read before."""
        self._reset()
        if not line.strip():
            return None
        event = read_answer(
            _decode(line), TaskEvent.model_validate, source=task_path(self.task_id) + "/events"
        )
        if event.index <= self.after:
            return None
        self.after = event.index
        self.finished = event.terminal
        return event

    def interrupted(self, error: UnavailableError | None) -> float | None:
        """Retry until the terminal event, unless nothing has arrived for `timeout`."""
        if self.finished:
            return None
        cause = error or UnavailableError(
            f"the event stream of task {self.task_id} ended before its terminal event"
        )
        left = self._deadline.remaining()
        if left <= 0:
            raise cause
        self._failures += 1
        return min(pause_after(self._failures, cause), left)


class ObjectStream(LineStream[dict[str, Any]]):
    """JSON objects, one per line, from a server that cannot resume a stream: read once, without retries.

    Args:
        request: The request.
    """

    def __init__(self, request: HttpRequest) -> None:
        self._request = request

    def request(self) -> HttpRequest:
        """Return the request."""
        return self._request

    def feed(self, line: bytes) -> dict[str, Any] | None:
        """Return the object in a line; None for a keep-alive."""
        return read_answer(_decode(line), as_object, source=self._request.path) if line.strip() else None

    def interrupted(self, error: UnavailableError | None) -> float | None:
        """Stop reading; raise the error if there is one."""
        if error is not None:
            raise error
        return None


def _decode(line: bytes) -> Any:
    try:
        return pydantic_core.from_json(line)
    except ValueError as exc:
        raise InternalServerError(f"a line of an event stream is not JSON: {line[:80]!r}") from exc
