"""The events of an inbox that the run has not taken yet, and which of them it is offered next."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from workflows.events import Event

from llama_deploy.services.run.inbox.open_questions import OpenQuestions
from llama_deploy.services.run.inbox.questions import Questions
from llama_deploy.workflow_library import address_event, address_of_wait


@dataclass(slots=True, eq=False)
class Offer:
    """An event of the inbox."""

    seq: int
    event: Event
    question_id: str | None = None
    """The question that it answers. None: any that it matches."""
    wait: tuple[str, str] | None = None
    """The step that waits for it and the name of the wait, if it is for one only and is offered."""
    has_arrived: bool = False
    """Whether the run has come to it."""
    was_dropped: bool = False
    """Whether no step has taken it."""


@dataclass(slots=True)
class Offers:
    """Events in the order of the inbox, of which the run is offered one at a time.

    Those that no step has taken wait until a question asks for them. A run that starts from its beginning
    again is offered an answer to an earlier attempt only when it has asked once more: the library would give
    all of them to the first question.
    """

    questions: Questions
    last_earlier: int = 0
    """The number of the last answer to an earlier attempt. 0: there is none."""
    ids: OpenQuestions | None = None
    """Knows the ids of questions. None: no event names one."""
    current: Offer | None = field(default=None, init=False)
    """What the run was offered and has not settled. None: nothing."""
    _has_asked: bool = field(default=False, init=False)
    """Whether the run has asked, or has become idle, since it was offered an event."""
    _waiting: deque[Offer] = field(default_factory=deque, init=False)
    _dropped: list[Offer] = field(default_factory=list, init=False)
    _unwanted: int = field(default=0, init=False)
    """How many of the first events the run has not wanted, as of `_seen`."""
    _seen: int = field(default=0, init=False)
    """The changes of the questions that were seen last."""

    def __len__(self) -> int:
        """Return how many events wait, without the current one."""
        return len(self._waiting) + len(self._dropped)

    def __bool__(self) -> bool:
        """Return whether an event waits to be offered."""
        return bool(self._waiting)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is offered, and nothing can be."""
        return self.current is None and self._next() is None

    def add(self, offer: Offer) -> None:
        """Add an event at the end."""
        self._waiting.append(offer)

    def take(self) -> Offer | None:
        """Remove the next event and return it, to be sent to the run. None: there is none now.

        Further ones are offered when it is settled.
        """
        if self.current is not None:
            return None
        offer = self.current = self._next()
        if offer is not None:
            self._waiting.remove(offer)
            self._has_asked = False
            offer.wait = self._wait_of(offer)
        return offer

    def before_tick(self) -> None:
        """The run processes its next tick now, with the questions that are known here.

        If that brings the current event, and it is for one wait but others would take it too, address it.
        """
        offer = self.current
        if offer is None or offer.wait is None or offer.has_arrived:
            return
        if self.questions.is_wanted_by_others(offer.event, *offer.wait):
            address_event(offer.event, address_of_wait(*offer.wait))

    def asked(self) -> None:
        """Learn that the run has asked, or has become idle."""
        self._has_asked = True

    def came_to(self, event: Event) -> None:
        """Learn that the run has come to an event. It is the same object that was sent."""
        if self.current is not None:
            self.current.has_arrived = event is self.current.event

    def not_taken(self) -> None:
        """Learn that no step takes the event to which the run has come."""
        if self.current is not None and self.current.has_arrived:
            self.current.was_dropped = True

    def settle(self) -> Offer | None:
        """Return the current event if the run has come to it: it was taken, or waits for a question."""
        offer = self.current
        if offer is None or not offer.has_arrived:
            return None
        self.current = None
        if offer.was_dropped and not self.is_for_one_wait(offer):
            self._dropped.append(Offer(offer.seq, offer.event, offer.question_id))
        return offer

    def offer_again(self) -> None:
        """Offer what was dropped, in front of later events, if a question asks for it."""
        again = [each for each in self._dropped if self.questions.is_asked_for(each.event)]
        if again:
            self._dropped = [each for each in self._dropped if each not in again]
            self._waiting.extendleft(reversed(again))
            self._unwanted = 0

    def is_for_one_wait(self, offer: Offer) -> bool:
        """Whether an event is for one step that waits."""
        question_id = offer.question_id
        return self.ids is not None and question_id is not None and self.ids.is_of_wait(question_id)

    def _next(self) -> Offer | None:
        offer = self._first_wanted()
        if offer is None or (offer.seq <= self.last_earlier and not self._has_asked):
            return None
        return offer

    def _first_wanted(self) -> Offer | None:
        if self._seen != self.questions.changes:
            self._unwanted, self._seen = 0, self.questions.changes
        for offer in islice(self._waiting, self._unwanted, None):
            if self._is_wanted(offer):
                return offer
            self._unwanted += 1
        return None

    def _is_wanted(self, offer: Offer) -> bool:
        if not self.is_for_one_wait(offer):
            return self.questions.wants(offer.event)
        wait = self._wait_of(offer)
        return wait is not None and self.questions.waits_for(*wait)

    def _wait_of(self, offer: Offer) -> tuple[str, str] | None:
        """Return the wait that an event is for. None: it is for any, or the run has not come to it."""
        if self.ids is None or offer.question_id is None:
            return None
        return self.ids.find_wait(offer.question_id)
