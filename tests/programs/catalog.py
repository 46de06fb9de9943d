"""The programs of this folder: how each is served, called and answered, and where it is killed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.schema import NodeWithScore
from tests.programs.approvals import Approval
from tests.programs.human_in_the_loop import ReviewGiven
from workflows import Workflow
from workflows.events import Event, HumanResponseEvent

from llama_deploy.types import Durability


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A workflow of this folder and how it is used."""

    name: str
    """The name of its service; its calls outside begin with it, unless `calls` says otherwise."""
    source: str
    """Module and attribute, `module:attribute`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[Mapping[str, Any], ...] = ()
    """The arguments of each task of one session. Empty: one task, with `arguments`."""
    answers: tuple[Event, ...] = ()
    """What is answered to its questions, in their order."""
    killed_in: str | None = None
    """The call outside in which it is killed. None: it is killed while it waits for its first answer."""
    is_killed: bool = True
    """Whether it is killed: a program whose time limit ends it meanwhile is not."""
    fails: bool = False
    """Whether its run fails."""
    repeated_events: frozenset[str] = frozenset()
    """The events of steps that are under way when it is killed."""
    repeated_calls: frozenset[str] = frozenset()
    """The calls outside of steps that may be under way, beside the one that is killed."""
    durability: Durability = Durability.STEP
    in_order: bool = True
    """Whether its events come in the same order each time."""
    result_type: Any = None
    """What its result is read as. None: the class of the result."""

    @property
    def target(self) -> str:
        """The program as `llamactl serve` takes it."""
        module, _, attribute = self.source.partition(":")
        return f"{self.name}={Path(__file__).parent / module}.py:{attribute}"

    @property
    def held_call(self) -> str | None:
        """The call outside in which it is killed, as `outside.call` has it."""
        if self.killed_in is None or "/" in self.killed_in:
            return self.killed_in
        return f"{self.name}/{self.killed_in}"

    @property
    def calls(self) -> str:
        """With what the names of its calls outside begin."""
        return (self.held_call or self.name).partition("/")[0]

    def load(self) -> Workflow:
        """Return its workflow as its author has it."""
        module, _, attribute = self.source.partition(":")
        served = getattr(importlib.import_module(f"tests.programs.{module}"), attribute)
        workflow = served if isinstance(served, Workflow) else served()
        assert isinstance(workflow, Workflow)
        return workflow


VOLATILE = Durability.VOLATILE
TEXTS = ["The moon causes the tides", "Bread needs flour"]
ORDER = {
    "customer": "Ada",
    "items": [
        {"sku": "6f1b5a4e-0c1d-4b5e-9a53-0b8f9d2f6c11", "price": "9.90", "count": 2},
        {"sku": "0d8a2f7c-5f0e-4f6b-8c1e-2d3b4a5c6d7e", "price": "0.10"},
    ],
}

PROGRAMS = (
    Program(
        name="rag",
        source="rag:RAGWorkflow",
        arguments={"query": "What causes the tides of the sea?"},
        killed_in="rerank",
    ),
    Program(
        name="rag_index",
        source="rag_index:ingest_and_query",
        arguments={"query": "tides", "texts": TEXTS},
        killed_in="synthesize",
        durability=VOLATILE,
    ),
    Program(
        name="react_agent",
        source="react_agent:ReActAgent",
        arguments={"input": "What is (2 + 3) * 4?"},
        killed_in="llm-1",
    ),
    Program(
        name="function_agent",
        source="function_agent:agent",
        arguments={"input": "Where is the sun?"},
        killed_in="llm-4",
    ),
    Program(
        name="reflection",
        source="reflection:reflection",
        arguments={"passage": "I like the Fiat and the Volvo."},
        killed_in="validate-2",
    ),
    Program(
        name="corrective_rag",
        source="corrective_rag:CorrectiveRAGWorkflow",
        arguments={"query_str": "tides", "texts": TEXTS},
        killed_in="answer",
        durability=VOLATILE,
    ),
    Program(
        name="concurrent_runs",
        source="concurrent_runs:flow",
        arguments={"queries": ["a", "b", "c", "d", "e"]},
        killed_in="c",
        repeated_events=frozenset({"ProgressEvent"}),
        repeated_calls=frozenset("abde"),
        in_order=False,
    ),
    Program(
        name="fan_out",
        source="fan_out:CountWords",
        arguments={"pages": ["a b", "c", "d e f"]},
        killed_in="page-1",
        repeated_calls=frozenset({"page-0", "page-2"}),
    ),
    Program(
        name="human_in_the_loop",
        source="human_in_the_loop:WriteWithReview",
        arguments={"topic": "tides"},
        answers=(ReviewGiven(response="shorter"), ReviewGiven(response="yes")),
    ),
    Program(
        name="rewriting",
        source="human_in_the_loop:WriteWithReview",
        arguments={"topic": "winds"},
        answers=(ReviewGiven(response="shorter"), ReviewGiven(response="yes")),
        killed_in="human_in_the_loop/rewrite",
    ),
    Program(
        name="approvals",
        source="approvals:purchase",
        arguments={"amount": 100},
        answers=(Approval(role="manager", granted=True), Approval(role="director", granted=False)),
        repeated_events=frozenset({"ApprovalRequest"}),
    ),
    Program(
        name="nested",
        source="nested:main",
        arguments={"query": "tides"},
        killed_in="child",
        repeated_events=frozenset({"Thought"}),
    ),
    Program(
        name="subclassed", source="subclassed:SumPipeline", arguments={"rows": [1, -1, 3]}, killed_in="report"
    ),
    Program(name="typed_state", source="typed_state:flow", arguments={"mood": "busy"}, killed_in="2"),
    Program(
        name="live_store",
        source="live_store:text_to_sql",
        arguments={"letter": "A"},
        killed_in="answer",
        durability=VOLATILE,
    ),
    Program(
        name="live_events",
        source="live_events:PassesObjects",
        arguments={"texts": ["the land", "the sea"]},
        killed_in="finish",
        durability=VOLATILE,
    ),
    Program(
        name="self_state",
        source="self_state:BookWriter",
        arguments={"topic": "tides"},
        killed_in="write",
        durability=VOLATILE,
    ),
    Program(name="self_lists", source="self_lists:Researcher", killed_in="search-2", durability=VOLATILE),
    Program(name="custom_events", source="custom_events:Billing", arguments=ORDER, killed_in="bill"),
    Program(
        name="streaming",
        source="streaming:workflow",
        arguments={"first_input": "Llamas are members of the camel family"},
        killed_in="third-token",
        repeated_events=frozenset({"TokenEvent"}),
    ),
    Program(name="retries", source="retries:RetryFlow", arguments={"url": "here"}, killed_in="use"),
    Program(
        name="catching", source="catching:Crawl", arguments={"url": "http://here"}, killed_in="summarize"
    ),
    Program(name="failing", source="failing:Spend", arguments={"credit": 3}, killed_in="spend", fails=True),
    Program(name="sync_steps", source="sync_steps:SyncFlow", arguments={"text": "1,2,3"}, killed_in="add"),
    Program(name="resources", source="resources:WithResources", arguments={"word": "sea"}, killed_in="say"),
    Program(
        name="workers",
        source="workers:Crawler",
        arguments={"page": "home"},
        killed_in="news",
        repeated_calls=frozenset({"about"}),
    ),
    Program(name="timeouts", source="timeouts:Quote", killed_in="estimate"),
    Program(name="never_ends", source="timeouts:never_ends", is_killed=False, fails=True),
    Program(
        name="chat",
        source="chat:chat",
        turns=({"message": "hello"}, {"message": "who"}, {"message": "bye"}),
        killed_in="5",
        result_type=list[ChatMessage],
    ),
    Program(
        name="research_team",
        source="agents:make_team",
        arguments={"user_msg": "Report on the tides."},
        killed_in="write",
        repeated_events=frozenset({"ToolCall"}),
    ),
    Program(
        name="assistant",
        source="agents:assistant",
        arguments={"user_msg": "How warm is it?"},
        killed_in="convert",
        repeated_events=frozenset({"ToolCall"}),
    ),
    Program(
        name="map_reduce",
        source="map_reduce:Summarize",
        arguments={"text": "a b c d e f g h"},
        killed_in="2-1",
        repeated_calls=frozenset({"2-0"}),
    ),
    Program(name="router", source="router:Router", arguments={"question": "12 or 3"}, killed_in="talk"),
    Program(
        name="loops",
        source="loops:game",
        arguments={"secret": 7},
        answers=tuple(HumanResponseEvent(response=guess) for guess in ("3", "9", "7")),
    ),
    Program(
        name="rich_state",
        source="rich_state:Sensors",
        arguments={"numbers": [0.5, 1.5, 2.0]},
        killed_in="judge",
    ),
    Program(
        name="arrays",
        source="arrays:RankByEmbedding",
        arguments={"vectors": [[1, 0], [1, 1], [0, 2]], "query": [0, 1]},
        killed_in="finish",
        durability=VOLATILE,
    ),
    *(
        Program(
            name=f"result_{kind}",
            source="results:Results",
            arguments={"kind": kind},
            killed_in=f"results/{kind}",
            result_type=list[NodeWithScore] if kind == "nodes" else None,
        )
        for kind in ("model", "dataclass", "nodes", "enum", "set", "none")
    ),
    Program(
        name="streams_words",
        source="generators:StreamsWords",
        arguments={"text": "one two three"},
        killed_in="stream",
    ),
    Program(
        name="streams_answer",
        source="generators:StreamsAnswer",
        arguments={"text": "one two three"},
        killed_in="stream",
    ),
    Program(
        name="plain_objects",
        source="plain_objects:MakesReport",
        arguments={"title": "Sea"},
        killed_in="finish",
        result_type=str,
    ),
    Program(name="caches", source="caches:cached", arguments={"number": 12}, killed_in="look_up"),
    Program(name="files", source="files:WritesFiles", arguments={"name": "tides"}, killed_in="extend"),
    Program(
        name="factory", source="factory:create_workflow", arguments={"topic": "llamas"}, killed_in="complete"
    ),
    Program(
        name="nested_questions",
        source="nested_questions:PlanTrip",
        arguments={"city": "Oslo"},
        answers=(HumanResponseEvent(response="yes"),),
        repeated_events=frozenset({"InputRequiredEvent"}),
    ),
    Program(name="local_classes", source="local_classes:greeter", arguments={"name": "Ada"}, killed_in="end"),
    Program(name="circle", source="shapes:Geometry", arguments={"round": True}, killed_in="shapes/Circle"),
    Program(name="square", source="shapes:Geometry", arguments={"round": False}, killed_in="shapes/Square"),
    Program(
        name="sub_questions",
        source="sub_questions:engine",
        arguments={"query": "Who was when and where?"},
        killed_in="when",
        repeated_events=frozenset({"QueryEvent"}),
        repeated_calls=frozenset({"who", "where"}),
        in_order=False,
    ),
    Program(
        name="deep_research",
        source="deep_research:create_workflow",
        arguments={"user_msg": "What moves the sea?"},
        killed_in="answer-1",
        repeated_events=frozenset({"UIEvent"}),
        repeated_calls=frozenset({"answer-0"}),
        in_order=False,
    ),
    Program(
        name="strategies",
        source="strategies:MultiStrategy",
        arguments={"query": "tides"},
        killed_in="rerank",
        repeated_calls=frozenset({"naive", "high"}),
    ),
)
"""What is served as it is."""
