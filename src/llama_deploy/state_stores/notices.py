"""The notices that control planes send each other through a database: their text form, and their receiver."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from llama_deploy.concurrency.batching import split
from llama_deploy.state_stores.base import Notice

MAX_TEXT_BYTES: Final = 7900
"""PostgreSQL takes less than 8000 bytes at a time; see "NOTIFY" in its documentation."""
_MAX_TEXTS: Final = 8
"""A notice of more texts is replaced by `everything`, which is cheaper."""
_MAX_TASKS: Final = 10_000
"""With more tasks, a gathered notice becomes `everything`."""


def encode_notice(notice: Notice, *, sender: str) -> list[str]:
    """Return a notice as texts of at most `MAX_TEXT_BYTES` bytes.

    Args:
        notice: The notice. Its `lost` is local and left out; one with `feeds` or `keys` names no tasks.
        sender: The name of this control plane, by which it recognizes its own notices.
    """
    due = None if notice.due is None else notice.due.isoformat()
    if notice.feeds or notice.keys:
        # Older releases read these as `feeds`, and still older ones as `everything`.
        return [json.dumps([sender, due, [], notice.feeds, notice.keys])]
    room = MAX_TEXT_BYTES - len(_text(sender, due, []))
    pages = split(sorted(notice.task_ids), size=lambda each: len(json.dumps(each)) + 2, max_size=room)
    texts = [_text(sender, due, page) for page in pages] or [_text(sender, due, [])]
    if notice.everything or len(texts) > _MAX_TEXTS:
        return [_text(sender, due, None)]
    return texts


def decode_notice(text: str) -> tuple[str, Notice]:
    """Return the sender and the notice of one text. A text that cannot be read means `everything`."""
    try:
        values: list[Any] = [*json.loads(text), False, False]
        sender, due, task_ids, feeds, keys, *_ = values
        notice = Notice(
            task_ids=frozenset(task_ids or ()),
            due=None if due is None else datetime.fromisoformat(due),
            everything=task_ids is None,
            feeds=bool(feeds),
            keys=bool(keys),
        )
    except (ValueError, TypeError):
        return "", Notice(everything=True)
    return str(sender), notice


def _text(sender: str, due: str | None, task_ids: list[str] | None) -> str:
    return json.dumps([sender, due, task_ids])  # only ASCII, so a character is a byte


class Mailbox:
    """Merges notices until they are read, so that at most one waits."""

    def __init__(self) -> None:
        self._gathered = Notice()
        self._arrived = asyncio.Event()

    def put(self, notice: Notice) -> None:
        """Add a notice."""
        self._gathered = _merged(self._gathered, notice)
        self._arrived.set()

    async def take(self) -> Notice:
        """Wait for a notice and return it."""
        await self._arrived.wait()
        self._arrived.clear()
        gathered, self._gathered = self._gathered, Notice()
        return gathered


def _merged(first: Notice, second: Notice) -> Notice:
    task_ids = first.task_ids | second.task_ids
    due = [item.due for item in (first, second) if item.due is not None]
    merged = Notice(
        task_ids=task_ids,
        due=min(due, default=None),
        everything=first.everything or second.everything,
        feeds=first.feeds or second.feeds,
        keys=first.keys or second.keys,
        lost=first.lost or second.lost,
    )
    if len(task_ids) > _MAX_TASKS:
        return replace(merged, task_ids=frozenset(), everything=True)
    return merged
