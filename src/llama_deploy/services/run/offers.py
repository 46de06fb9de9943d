"""The events of an inbox that the run has not taken yet, and which of them it is offered next."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from workflows.events import Event

from llama_deploy.services.run.questions import Questions


@dataclass(slots=True, eq=False)
class Offer:
    """An event of the inbox."""

    seq: int
    event: Event
    has_arrived: bool = False
    """Whether the run has come to it."""
    was_dropped: bool = False
    """Whether no step has taken it."""


@dataclass(slots=True)
class EarlierAnswers:
    """Answers to what an earlier attempt has asked, for a run that starts from its beginning again.

    Each waits until the run has asked once more: the library would give all of them to the first question.
    """

    last: int
    """The number of the last such entry; 0: there is none."""
    has_asked: bool = False
    """Whether the run has asked, or has become idle, since it was offered an event."""

    def holds_back(self, offer: Offer) -> bool:
        """Whether an event must wait until the run asks."""
        return offer.seq <= self.last and not self.has_asked


@dataclass(slots=True)
class Offers:
    """Events in the order of the inbox. Those that no step has taken wait until a question asks for them."""

    questions: Questions
    earlier: EarlierAnswers
    _waiting: deque[Offer] = field(default_factory=deque)
    _dropped: list[Offer] = field(default_factory=list)
    _unwanted: int = 0
    """How many of the first events the run has not wanted, as of `_seen`."""
    _seen: int = 0
    """The changes of the questions that were seen last."""

    def __len__(self) -> int:
        """Return how many events the run has not taken."""
        return len(self._waiting) + len(self._dropped)

    def __bool__(self) -> bool:
        """Return whether an event waits to be offered."""
        return bool(self._waiting)

    def add(self, offer: Offer) -> None:
        """Add an event at the end."""
        self._waiting.append(offer)

    def next(self) -> Offer | None:
        """Return the first event that can be offered now. None: there is none."""
        offer = self._first_wanted()
        return None if offer is None or self.earlier.holds_back(offer) else offer

    def take(self) -> Offer | None:
        """Remove and return the event that can be offered now."""
        offer = self.next()
        if offer is not None:
            self._waiting.remove(offer)
            self.earlier.has_asked = False
        return offer

    def drop(self, offer: Offer) -> None:
        """Keep an event that no step has taken until a question asks for it."""
        self._dropped.append(Offer(offer.seq, offer.event))

    def offer_again(self) -> None:
        """Offer what was dropped, in front of later events, if a question asks for it."""
        again = [each for each in self._dropped if self.questions.is_asked_for(each.event)]
        if again:
            self._dropped = [each for each in self._dropped if each not in again]
            self._waiting.extendleft(reversed(again))
            self._unwanted = 0

    def _first_wanted(self) -> Offer | None:
        if self._seen != self.questions.changes:
            self._unwanted, self._seen = 0, self.questions.changes
        for offer in islice(self._waiting, self._unwanted, None):
            if self.questions.wants(offer.event):
                return offer
            self._unwanted += 1
        return None
