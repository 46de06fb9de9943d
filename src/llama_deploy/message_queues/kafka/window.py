"""What a member knows of one partition: the messages that are not settled, and what to commit. No I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llama_deploy.message_queues.kafka.envelope import Envelope
from llama_deploy.messages import QueueMessage

if TYPE_CHECKING:
    from llama_deploy.message_queues.kafka.subscription import KafkaDelivery


@dataclass(slots=True, eq=False)
class Entry:
    """A message of a partition that is not settled."""

    partition: int
    offset: int
    body: bytes
    message: QueueMessage
    envelope: Envelope
    timer: asyncio.TimerHandle | None = None
    """Rings when it is due, or when whoever has it must have settled it."""
    delivery: KafkaDelivery | None = None
    """With which somebody has it in his hands."""
    is_leaving: bool = False
    """Whether a copy of it is being written, with which it is settled here."""
    verdict: float | None = None
    """When it is due, as whoever has it has said while its copy was being written."""
    copy: tuple[int, str] | None = None
    """The partition and the id of the copy to which its holder's notes go. None: its window is ours."""

    def stop_timer(self) -> None:
        """Let nothing ring."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True)
class Window:
    """The unsettled messages of a partition, and how far it was read."""

    entries: dict[int, Entry] = field(default_factory=dict)
    """By offset, in order."""
    copies: dict[str, Entry] = field(default_factory=dict)
    """Those with an id."""
    noted: dict[str, float] = field(default_factory=dict)
    """When copies are due, by the notes that came before them."""
    next_offset: int = 0
    """Behind the last record that was read."""
    committed: int = 0
    """Behind the records that the broker knows to be settled."""
    touched: int = -1
    """The last record that was settled or in somebody's hands."""

    def add(self, entry: Entry) -> None:
        """Take up the next message."""
        self.entries[entry.offset] = entry
        self.next_offset = entry.offset + 1
        if entry.envelope.id:
            self.copies[entry.envelope.id] = entry

    def skip(self, offset: int) -> None:
        """Take up a record that has nothing to deliver."""
        self.next_offset = offset + 1

    def touch(self, entry: Entry) -> None:
        """Note that somebody has a message in his hands."""
        self.touched = max(self.touched, entry.offset)

    def settle(self, entry: Entry) -> None:
        """Forget a message."""
        entry.stop_timer()
        self.touch(entry)
        if self.entries.get(entry.offset) is entry:
            del self.entries[entry.offset]
            self.copies.pop(entry.envelope.id, None)

    def settled_to(self) -> int:
        """Return the offset to commit: all before it is settled."""
        return next(iter(self.entries), self.next_offset)

    def stranded(self) -> Iterator[Entry]:
        """Return what is in somebody's hands, or lies before what is or was.

        What is not returned can be left to the next member as it is.
        """
        return (entry for entry in list(self.entries.values()) if entry.offset <= self.touched)
