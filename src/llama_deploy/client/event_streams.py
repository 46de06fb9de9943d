"""Event streams: lines in, events out. No I/O."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import pydantic_core

from llama_deploy.client.deadline import Clock, Deadline, pause_after
from llama_deploy.client.paths import task_path
from llama_deploy.errors import InternalServerError, UnavailableError
from llama_deploy.types import NewAttempt, StreamCursor, StreamedAttempt, TaskEvent
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
        types: The names of the classes of events to read, besides the terminal one. Empty: all.
        internal: Whether to read internal events too.
        clock: The clock for `timeout`.
    """

    def __init__(
        self,
        task_id: str,
        *,
        after: int = -1,
        timeout: float,
        types: Sequence[str] = (),
        internal: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        self.task_id = task_id
        self.after = after
        self._selection: dict[str, str] = {}
        if types:
            self._selection["types"] = ",".join(types)
        if internal:
            self._selection["internal"] = "true"
        self._timeout = timeout
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._failures = 0
        self._deadline = Deadline(self._timeout, self._clock)

    @property
    def path(self) -> str:
        """The path of the stream."""
        return task_path(self.task_id) + "/events"

    def request(self) -> HttpRequest:
        """Return the request for the events after the last one read."""
        return HttpRequest("GET", self.path, params={"after": self.after, **self._selection})

    def feed(self, line: bytes) -> TaskEvent | None:
        """Return the event in a line; None for a keep-alive and for an event that was read before."""
        item = self.decode(line)
        return None if item is None else self.take(item)

    def decode(self, line: bytes) -> Any:
        """Return the JSON in a line; None for a keep-alive."""
        self._reset()
        return decode_line(line) if line.strip() else None

    def take(self, item: Any) -> TaskEvent | None:
        """Return the event in the JSON of a line; None for one that was read before, and for a cursor."""
        if isinstance(item, dict) and "cursor" in item:
            passed = read_answer(item, StreamCursor.model_validate, source=self.path)
            self.after = max(self.after, passed.cursor)
            return None
        event = read_answer(item, TaskEvent.model_validate, source=self.path)
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


class AttemptStream(LineStream[TaskEvent | NewAttempt]):
    """The events of a task, and between them the new attempts that take over, each once.

    Args:
        events: Reads the events.
    """

    def __init__(self, events: EventStream) -> None:
        self._events = events
        self._last_attempt = 0

    def request(self) -> HttpRequest:
        """Return the request for what follows the last event read."""
        request = self._events.request()
        return replace(request, params={**request.params, "attempts": "true"})

    def feed(self, line: bytes) -> TaskEvent | NewAttempt | None:
        """Return the item in a line; None for a keep-alive and for an item that was read before."""
        item = self._events.decode(line)
        if item is None:
            return None
        if not isinstance(item, dict) or "new_attempt" not in item:
            event = self._events.take(item)
            self.finished = self._events.finished
            return event
        new = read_answer(item, StreamedAttempt.model_validate, source=self._events.path).new_attempt
        # After a reconnection, the one that stands before the next event comes again.
        if new.attempt <= self._last_attempt:
            return None
        self._last_attempt = new.attempt
        return new

    def interrupted(self, error: UnavailableError | None) -> float | None:
        """Retry as for the events alone."""
        return self._events.interrupted(error)


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
        return read_answer(decode_line(line), as_object, source=self._request.path) if line.strip() else None

    def interrupted(self, error: UnavailableError | None) -> float | None:
        """Stop reading; raise the error if there is one."""
        if error is not None:
            raise error
        return None


def decode_line(line: bytes) -> Any:
    """Return the JSON in a line of a stream.

    Raises:
        InternalServerError: It is not JSON.
    """
    try:
        return pydantic_core.from_json(line)
    except ValueError as exc:
        raise InternalServerError(f"a line of an event stream is not JSON: {line[:80]!r}") from exc
