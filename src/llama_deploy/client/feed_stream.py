"""Feeds of task changes: lines in, items out. No I/O."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from llama_deploy.client.deadline import Clock, Deadline, pause_after
from llama_deploy.client.event_streams import LineStream, decode_line
from llama_deploy.errors import UnavailableError
from llama_deploy.types.feeds import FeedItem
from llama_deploy.web.answers import read_answer
from llama_deploy.web.http_exchange import HttpRequest

K = TypeVar("K")
V = TypeVar("V")

_PATH: Final = "/events"
_MAX_KNOWN: Final = 10_000
"""Of how many tasks it is known what was read last."""


class FeedStream(LineStream[FeedItem]):
    """The changes of tasks, over as many connections as it takes. What comes again is left out.

    Args:
        services: The names of services; empty: all.
        session_id: A session; None: all.
        statuses: Only changes to these statuses; empty: all.
        after: The cursor to resume from. None: from now on.
        stream: Whether to read the events of the tasks too.
        timeout: Seconds to retry while the control plane sends nothing.
        clock: The clock for `timeout`.
    """

    def __init__(
        self,
        *,
        services: Sequence[str] = (),
        session_id: str | None = None,
        statuses: Sequence[str] = (),
        after: str | None = None,
        stream: bool = False,
        timeout: float,
        clock: Clock = time.monotonic,
    ) -> None:
        self.cursor = after
        """The last cursor that was read."""
        self._query: dict[str, Any] = {"service": list(services), "status": list(statuses)}
        if session_id is not None:
            self._query["session"] = session_id
        if stream:
            self._query["stream"] = "true"
        self._timeout = timeout
        self._clock = clock
        self._told: dict[str, Hashable] = {}
        self._read: dict[str, int] = {}
        """The index of the last event of each task."""
        self._reset()

    def _reset(self) -> None:
        self._failures = 0
        self._deadline = Deadline(self._timeout, self._clock)

    def request(self) -> HttpRequest:
        """Return the request for what follows the last cursor."""
        query = dict(self._query)
        if self.cursor is not None:
            query["after"] = self.cursor
        text = urlencode(query, doseq=True)
        path = f"{_PATH}?{text}" if text else _PATH
        return HttpRequest("GET", path, headers={"Accept": "application/x-ndjson"})

    def feed(self, line: bytes) -> FeedItem | None:
        """Return the item in a line; None for what was read before."""
        self._reset()
        if not line.strip():
            return None
        item = read_answer(decode_line(line), FeedItem.model_validate, source=_PATH)
        if item.cursor is not None:
            self.cursor = item.cursor
        if (task := item.task) is not None:
            return (
                item
                if _is_news(self._told, task.task_id, (task.status, task.changed_at, task.attempt))
                else None
            )
        if (event := item.event) is not None:
            if event.index <= self._read.get(event.task_id, -1):
                return None
            _is_news(self._read, event.task_id, event.index)
        return item

    def interrupted(self, error: UnavailableError | None) -> float | None:
        """Retry for ever, unless nothing has arrived for `timeout`."""
        cause = error or UnavailableError("the feed of task changes has ended")
        left = self._deadline.remaining()
        if left <= 0:
            raise cause
        self._failures += 1
        return min(pause_after(self._failures, cause), left)


def _is_news(known: dict[K, V], key: K, value: V) -> bool:
    """Note a value, and return whether it was another one before. The oldest are forgotten."""
    before = known.pop(key, None)
    known[key] = value
    if len(known) > _MAX_KNOWN:
        del known[next(iter(known))]
    return before != value
