"""Cursors of feeds: from when on a reader has to be told what has changed. No I/O.

A cursor belongs to the filter with which the feed was read. It holds a time of the control plane's clock, so
any control plane on the same store can resume from it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.errors import CursorExpiredError, InvalidRequestError
from llama_deploy.state_stores.feed_repository import TaskChangeRecord
from llama_deploy.types import TaskStatus
from llama_deploy.types.epoch import from_microseconds, to_microseconds
from llama_deploy.types.keys import tenant_of
from llama_deploy.types.owners import THE_DEFAULT_TENANT, Owner

MAX_AGE: Final = timedelta(minutes=10)
"""How old a cursor may be."""
MARGIN: Final = timedelta(seconds=10)
"""By how much a cursor is older than what was told with it: the clocks of control planes differ, and a
transaction takes time. What has changed meanwhile is told again."""
_FORM: Final = re.compile(r"1-([0-9]{1,17})-([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class FeedFilter:
    """Selects tasks and their changes."""

    services: frozenset[str] = frozenset()
    """The names of services. None: all."""
    session_id: str | None = None
    statuses: frozenset[TaskStatus] = frozenset()
    """Only changes to one of these. None: all changes."""
    owner: Owner = THE_DEFAULT_TENANT
    """To whom the tasks belong."""

    def admits_task(self, task: TaskChangeRecord) -> bool:
        """Whether a task is among those that the reader wants."""
        return (
            tenant_of(task.task_id) == self.owner.tenant
            and self.owner.subject in (None, task.subject)
            and (not self.services or task.target in self.services)
            and self.session_id in (None, task.session_id)
        )

    def admits_deletion(self, task_id: str) -> bool:
        """Whether the reader is told of a task that was deleted, of which only the key is known."""
        return tenant_of(task_id) == self.owner.tenant and self.owner.subject is None

    def admits_status(self, status: TaskStatus) -> bool:
        """Whether the reader wants changes to this status."""
        return not self.statuses or status in self.statuses

    @property
    def digest(self) -> str:
        """A text that differs between filters."""
        facts: list[object] = [sorted(self.services), self.session_id, sorted(self.statuses)]
        text = json.dumps(facts if self.owner.is_default else [*facts, *self.owner])
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def encode_feed_cursor(told_at: datetime, wanted: FeedFilter) -> str:
    """Return the cursor of a reader that was told everything that had changed at a time."""
    return f"1-{to_microseconds(told_at - MARGIN)}-{wanted.digest}"


def decode_feed_cursor(cursor: str, wanted: FeedFilter, *, now: datetime) -> datetime:
    """Return from when on changes are to be told.

    Raises:
        InvalidRequestError: It is not a cursor, or that of another filter.
        CursorExpiredError: It is too old.
    """
    found = _FORM.fullmatch(cursor)
    if found is None:
        raise InvalidRequestError(
            f"{cursor[:40]!r} is not a cursor of a feed; leave it out to read from now on"
        )
    if found[2] != wanted.digest:
        raise InvalidRequestError(
            "the cursor belongs to a feed with another filter; send the parameters with which you got it, or"
            " leave it out to read from now on"
        )
    since = from_microseconds(int(found[1]))
    if now - since > MAX_AGE + MARGIN:
        raise CursorExpiredError(
            f"the cursor is from {since.isoformat(timespec='seconds')}, and may be at most"
            f" {MAX_AGE // timedelta(minutes=1)} minutes old; read the list of tasks, and the feed without a"
            " cursor"
        )
    return since
