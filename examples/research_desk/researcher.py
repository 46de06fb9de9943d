"""The service `researcher`: answers questions by searching in the service `library`, over the network.

It streams its progress, and keeps the conversation in its session, so a question such as "and how do I cancel
it?" refers to the previous one.
"""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise, product
from typing import Final

from pydantic import BaseModel, Field
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy import Client

PAUSE_BETWEEN_ROUNDS: Final = 0.4
"""Seconds; limits the load on the library."""
_PASSAGES_PER_SEARCH: Final = 4
_PASSAGES_PER_ANSWER: Final = 4
_MAX_TOPICS_OF_A_FOLLOW_UP: Final = 2
_REFERENCES: Final = frozenset({"it", "its", "that", "them", "these", "they", "this", "those"})
_STOP_WORDS: Final = _REFERENCES | set(
    re.findall(
        r"\w+",
        """a about after again all also am an and any are as at be been before but by can could did do does
        doing each for from get had has have how i if in into is just let like make me my need not now of
        off on one only or other our out over please should so some such than the their then there to too
        use used using very want was way we were what when where which while who why will with without
        would you your""",
    )
)


def find_topics(question: str) -> list[str]:
    """Return the topics of a question: the groups of words between stop words and punctuation."""
    topics: list[list[str]] = [[]]
    for token in re.findall(r"\w+|[^\w\s]", question.lower()):
        if token in _STOP_WORDS or not token[0].isalnum():
            topics.append([])
        else:
            topics[-1].append(token)
    return list(dict.fromkeys(" ".join(words) for words in topics if words))


def refers_back(question: str) -> bool:
    """Whether a question has few topics of its own and uses a pronoun for an earlier one."""
    refers = not _REFERENCES.isdisjoint(re.findall(r"\w+", question.lower()))
    return refers and len(find_topics(question)) <= _MAX_TOPICS_OF_A_FOLLOW_UP


def plan_searches(topics: list[str], earlier: list[str]) -> list[str]:
    """Return the searches: all topics together, then topics in pairs.

    Args:
        topics: The topics of the question. Each is paired with the next one, or with all earlier ones.
        earlier: The topics of the previous question, if this one refers to it.
    """
    pairs = product(topics, earlier) if earlier else pairwise(topics)
    return list(dict.fromkeys([" ".join([*topics, *earlier]), *map(" ".join, pairs)]))


class Question(StartEvent):
    """The run arguments."""

    question: str = Field(min_length=1)
    rounds: int = Field(default=1, ge=1, le=20)
    """The number of search rounds. Each further round follows the best passage not followed yet."""


class Passage(BaseModel):
    """The fields of a library passage that the researcher reads."""

    source: str
    location: str
    text: str
    score: float


class Passages(BaseModel):
    """The fields of a library result that the researcher reads."""

    passages: list[Passage]


class QuestionUnderstood(Event):
    """Streamed once, before the first search."""

    topics: list[str]
    builds_on: list[str]
    """The topics of the previous question, if this one refers to it."""


class SearchStarted(Event):
    """Streamed for each search."""

    round: int
    query: str


class PassageFound(Event):
    """Streamed for each passage that was not found before."""

    round: int
    source: str
    location: str


class RoundFinished(Event):
    """Streamed after each round."""

    round: int
    rounds: int
    passages: int
    """The number of passages found so far."""


class Round(Event):
    """The next searches, and the passages found before them."""

    question: str
    topics: list[str]
    queries: list[str]
    number: int
    rounds: int
    found: list[Passage]
    """Best first."""


class Answer(StopEvent):
    """The result: passages, best first."""

    question: str
    topics: list[str]
    passages: list[Passage]


class Turn(BaseModel):
    """An answered question and the sources of its answer."""

    question: str
    topics: list[str]
    sources: list[str]

    @property
    def context(self) -> list[str]:
        """What a follow-up question inherits: the topics, and the package of the best source."""
        return [*self.topics, *(source.partition(".")[0] for source in self.sources[:1])]


class Conversation(BaseModel):
    """The state of the session."""

    turns: list[Turn] = Field(default_factory=list)


class Researcher(Workflow):
    """Answers questions with passages from the library, and remembers earlier questions of the session.

    It searches in rounds. The searches of a round run at the same time.

    Args:
        client: A client of the control plane at which the library is registered.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(timeout=120)
        self._client = client

    @step
    async def understand(self, ev: Question, ctx: Context[Conversation]) -> Round:
        """Split the question into searches; add the topics of the previous one if it refers to it."""
        turns = (await ctx.store.get_state()).turns
        earlier = turns[-1].context if turns and refers_back(ev.question) else []
        topics = find_topics(ev.question)
        ctx.write_event_to_stream(QuestionUnderstood(topics=topics, builds_on=earlier))
        return Round(
            question=ev.question,
            topics=[*topics, *earlier],
            queries=plan_searches(topics, earlier) or [ev.question],
            number=1,
            rounds=ev.rounds,
            found=[],
        )

    @step
    async def search(self, ev: Round, ctx: Context[Conversation]) -> Round | Answer:
        """Run the searches of one round at the same time, and choose the next step."""
        replies = await asyncio.gather(*(self._ask_library(query, ev, ctx) for query in ev.queries))
        found = rank(ev.found, replies, weight=1 / ev.number)
        known = {passage.source for passage in ev.found}
        for passage in found:
            if passage.source not in known:
                ctx.write_event_to_stream(
                    PassageFound(round=ev.number, source=passage.source, location=passage.location)
                )
        ctx.write_event_to_stream(RoundFinished(round=ev.number, rounds=ev.rounds, passages=len(found)))
        if ev.number == ev.rounds or not found:
            return await self._answer(ev, found, ctx)
        await asyncio.sleep(PAUSE_BETWEEN_ROUNDS)
        lead = found[(ev.number - 1) % len(found)]
        queries = [_follow(lead), f"{_follow(lead)} {' '.join(ev.topics)}"]
        return ev.model_copy(update={"number": ev.number + 1, "queries": queries, "found": found})

    async def _ask_library(self, query: str, ev: Round, ctx: Context[Conversation]) -> list[Passage]:
        ctx.write_event_to_stream(SearchStarted(round=ev.number, query=query))
        reply = await self._client.run("library", query=query, top=_PASSAGES_PER_SEARCH, as_type=Passages)
        return reply.passages

    async def _answer(self, ev: Round, found: list[Passage], ctx: Context[Conversation]) -> Answer:
        best = found[:_PASSAGES_PER_ANSWER]
        turn = Turn(question=ev.question, topics=ev.topics, sources=[passage.source for passage in best])
        async with ctx.store.edit_state() as conversation:
            conversation.turns.append(turn)
        return Answer(question=ev.question, topics=ev.topics, passages=best)


def rank(found: list[Passage], replies: list[list[Passage]], *, weight: float) -> list[Passage]:
    """Return each passage once, best first: those that rank high in many searches.

    Args:
        found: Passages of earlier rounds.
        replies: The results of this round's searches, each with the best first.
        weight: The weight of this round's results.
    """
    merged = {passage.source: passage for passage in found}
    for reply in replies:
        for place, passage in enumerate(reply, start=1):
            before = merged.get(passage.source, passage.model_copy(update={"score": 0.0}))
            merged[passage.source] = before.model_copy(update={"score": before.score + weight / place})
    return sorted(merged.values(), key=lambda passage: (-passage.score, passage.source))


def _follow(passage: Passage) -> str:
    """Return a search for related passages: the last two parts of the name."""
    return " ".join(passage.source.split(".")[-2:])


researcher = Researcher(Client())
