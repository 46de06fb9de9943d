"""What control planes tell each other through a database: as text on the way, and gathered on arrival."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Final

from llama_deploy.state_stores.base import Notice

LONGEST_TEXT: Final = 7900
"""Bytes. PostgreSQL takes less than 8000 at a time; see "NOTIFY" in its documentation."""
_MOST_TEXTS: Final = 8
"""With more of them, one that says "everything" is cheaper."""
_MOST_TASKS: Final = 10_000
"""How many tasks are gathered at the most; beyond, all are meant."""


def encode_notice(notice: Notice, *, sender: str) -> list[str]:
    """Return a notice as texts of at most `LONGEST_TEXT` bytes.

    Args:
        notice: What to tell. That it is `lost` is nobody else's business and left out.
        sender: Who tells it, so that it can tell its own notices from others.
    """
    due = None if notice.due is None else notice.due.isoformat()
    texts = list(_pages(sender, due, sorted(notice.task_ids)))
    if notice.everything or len(texts) > _MOST_TEXTS:
        return [_text(sender, due, None)]
    return texts


def decode_notice(text: str) -> tuple[str, Notice]:
    """Return the sender and the notice of one text; what cannot be read means everything."""
    try:
        sender, due, task_ids = json.loads(text)
        notice = Notice(
            task_ids=frozenset(task_ids or ()),
            due=None if due is None else datetime.fromisoformat(due),
            everything=task_ids is None,
        )
    except (ValueError, TypeError):
        return "", Notice(everything=True)
    return str(sender), notice


def _pages(sender: str, due: str | None, task_ids: list[str]) -> Iterator[str]:
    left = room = LONGEST_TEXT - len(_text(sender, due, []))
    page: list[str] = []
    for task_id in task_ids:
        size = len(json.dumps(task_id)) + 2
        if size > left and page:
            yield _text(sender, due, page)
            page, left = [], room
        page.append(task_id)
        left -= size
    yield _text(sender, due, page)


def _text(sender: str, due: str | None, task_ids: list[str] | None) -> str:
    return json.dumps([sender, due, task_ids])  # only ASCII, so a character is a byte


class Mailbox:
    """Gathers notices until they are read: however many come, there is one to read."""

    def __init__(self) -> None:
        self._gathered = Notice()
        self._arrived = asyncio.Event()

    def put(self, notice: Notice) -> None:
        """Add a notice to what is gathered."""
        self._gathered = _together(self._gathered, notice)
        self._arrived.set()

    async def take(self) -> Notice:
        """Wait until there is something, and return it."""
        await self._arrived.wait()
        self._arrived.clear()
        gathered, self._gathered = self._gathered, Notice()
        return gathered


def _together(first: Notice, second: Notice) -> Notice:
    task_ids = first.task_ids | second.task_ids
    due = [item.due for item in (first, second) if item.due is not None]
    merged = Notice(
        task_ids=task_ids,
        due=min(due, default=None),
        everything=first.everything or second.everything,
        lost=first.lost or second.lost,
    )
    if len(task_ids) > _MOST_TASKS:
        return replace(merged, task_ids=frozenset(), everything=True)
    return merged
