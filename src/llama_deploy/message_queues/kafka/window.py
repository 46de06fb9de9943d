"""What a member knows of its partitions: the messages that are not settled, and what to commit. No I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llama_deploy.message_queues.base import Delivery
from llama_deploy.message_queues.kafka.envelope import Envelope
from llama_deploy.messages import QueueMessage


@dataclass(slots=True, eq=False)
class Entry:
    """A message of a partition that is not settled."""

    partition: int
    offset: int
    body: bytes
    message: QueueMessage
    envelope: Envelope
    timer: asyncio.TimerHandle | None = None
    """Fires when the message is due, or when its visibility timeout ends."""
    delivery: Delivery | None = None
    """The delivery with which it was handed out."""
    is_leaving: bool = False
    """Whether a copy of it is being written, with which it is settled here."""
    verdict: float | None = None
    """When it is due, as its holder has decided while the copy was being written."""
    copy: tuple[int, str] | None = None
    """The partition and the id of the copy to which its holder's notes go. None: it is in a window here."""

    def stop_timer(self) -> None:
        """Cancel the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True)
class Window:
    """The unsettled messages of a partition, and how far it was read."""

    entries: dict[int, Entry] = field(default_factory=dict)
    """By offset, in order."""
    copies: dict[str, Entry] = field(default_factory=dict)
    """The entries with an id."""
    noted: dict[str, float] = field(default_factory=dict)
    """When copies are due, by the notes that came before them."""
    next_offset: int = 0
    """Behind the last record that was read."""
    committed: int = 0
    """Behind the records that the broker knows to be settled."""
    touched: int = -1
    """The last record that was settled or handed out."""

    def add(self, entry: Entry) -> None:
        """Add the next message."""
        self.entries[entry.offset] = entry
        self.next_offset = entry.offset + 1
        if entry.envelope.id:
            self.copies[entry.envelope.id] = entry

    def touch(self, entry: Entry) -> None:
        """Note that a message was handed out."""
        self.touched = max(self.touched, entry.offset)

    def settle(self, entry: Entry) -> None:
        """Remove a message."""
        entry.stop_timer()
        self.touch(entry)
        if self.entries.get(entry.offset) is entry:
            del self.entries[entry.offset]
            self.copies.pop(entry.envelope.id, None)

    def settled_to(self) -> int:
        """Return the offset to commit: all before it is settled."""
        return next(iter(self.entries), self.next_offset)

    def stop_timers(self) -> None:
        """Cancel the timers of all entries."""
        for entry in self.entries.values():
            entry.stop_timer()

    def stranded(self) -> Iterator[Entry]:
        """Return what is handed out, or lies before what is or was.

        All else can be left to the next member as it is.
        """
        return (entry for entry in list(self.entries.values()) if entry.offset <= self.touched)


@dataclass(slots=True)
class Assignment:
    """The partitions of a member, each with its window, and those of other members."""

    windows: dict[int, Window] = field(default_factory=dict)
    foreign: list[int] = field(default_factory=list)
    """The partitions of other members."""
    is_moving: bool = False
    """Whether a rebalance is in progress: nothing is read then."""

    def window(self, partition: int, offset: int) -> Window:
        """Return the window of a partition; a new one begins at `offset`."""
        if partition not in self.windows:
            self.windows[partition] = Window(committed=offset)
        return self.windows[partition]

    def holds(self, entry: Entry) -> bool:
        """Return whether an entry is still in the window that it came from."""
        window = self.windows.get(entry.partition)
        return window is not None and window.entries.get(entry.offset) is entry

    def touch(self, entry: Entry) -> None:
        """Note that an entry was handed out."""
        self.windows[entry.partition].touch(entry)

    def settle(self, entry: Entry) -> None:
        """Remove an entry, if its partition is still here."""
        entry.stop_timer()
        if entry.partition in self.windows:
            self.windows[entry.partition].settle(entry)

    def unsettled(self) -> int:
        """Return how many messages are not settled."""
        return sum(len(window.entries) for window in self.windows.values())

    def stranded(self) -> list[Entry]:
        """Return what has to be moved before others get the partitions."""
        return [entry for window in self.windows.values() for entry in window.stranded()]

    def offsets_to_commit(self) -> dict[int, int]:
        """Return the offset of each partition in which more is settled than was committed."""
        offsets = {number: window.settled_to() for number, window in self.windows.items()}
        return {number: to for number, to in offsets.items() if to > self.windows[number].committed}

    def note_committed(self, offsets: Mapping[int, int]) -> None:
        """Note that the broker has stored offsets."""
        for number, offset in offsets.items():
            if number in self.windows:
                self.windows[number].committed = offset

    def rebalanced(self, foreign: Sequence[int]) -> None:
        """Start over after a rebalance."""
        self.foreign = list(foreign)
        self.is_moving = False

    def forget(self, partition: int) -> None:
        """Drop the window of a partition. What is handed out can still be settled or given back."""
        if (window := self.windows.pop(partition, None)) is not None:
            window.stop_timers()

    def stop_timers(self) -> None:
        """Cancel the timers of all entries."""
        for window in self.windows.values():
            window.stop_timers()

    def release(self) -> None:
        """Leave what is not settled to the next members of the partitions."""
        self.is_moving = True
        self.stop_timers()
        for window in self.windows.values():
            for entry in window.entries.values():
                if entry.delivery is not None and not entry.is_leaving:
                    entry.delivery.is_settled = True
        self.windows.clear()
