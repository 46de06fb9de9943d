"""What records mean: messages, copies that come back, and notes about copies. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX
from llama_deploy.message_queues.dead_letters import decode_message
from llama_deploy.message_queues.kafka.envelope import Envelope
from llama_deploy.message_queues.kafka.window import Assignment, Entry, Window
from llama_deploy.messages import QueueMessage

_MAX_NOTED: Final = 1000


class Intake:
    """Puts records into the windows of their partitions.

    Args:
        assignment: The windows.
        topic: The topic.
        group: The group; what is for others is skipped.
        max_deliveries: What cannot be decoded counts as delivered so often.
    """

    def __init__(self, assignment: Assignment, *, topic: str, group: str, max_deliveries: int) -> None:
        self._assignment = assignment
        self._topic = topic
        self._group = group
        self._max_deliveries = max_deliveries

    def take(self, record: Any) -> Iterator[tuple[Entry, float]]:
        """Take a record; yield the message that it is about, and when that is due."""
        window = self._assignment.window(record.partition, record.offset)
        window.next_offset = record.offset + 1
        envelope = Envelope.read(record.headers)
        if envelope.group not in ("", self._group):
            return
        if envelope.id and not record.value:
            yield from self._take_note(window, envelope)
        else:
            yield from self._take_message(window, record, envelope)

    def _take_note(self, window: Window, note: Envelope) -> Iterator[tuple[Entry, float]]:
        entry = window.copies.get(note.id)
        if entry is None:
            if len(window.noted) >= _MAX_NOTED:
                window.noted.clear()
            window.noted[note.id] = note.due
        elif entry.delivery is None and not entry.is_leaving:
            entry.stop_timer()
            yield entry, note.due

    def _take_message(self, window: Window, record: Any, envelope: Envelope) -> Iterator[tuple[Entry, float]]:
        body = record.value or b""
        message = decode_message(body, topic=self._topic)
        if message is None:
            if self._topic.endswith(DEAD_LETTERS_SUFFIX):
                return
            message = QueueMessage()
            envelope = replace(envelope, attempts=self._max_deliveries, due=0.0)
        entry = Entry(record.partition, record.offset, body, message, envelope)
        window.add(entry)
        yield entry, window.noted.pop(envelope.id, envelope.due)
