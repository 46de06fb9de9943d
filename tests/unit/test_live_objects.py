"""Objects with connections, code or secrets do not leave their process; plain data does."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
import threading
from collections import UserList, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import MappingProxyType, ModuleType
from typing import Annotated, Any

import numpy as np
import pytest
from llama_index.core import Document, MockEmbedding
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms import MockLLM
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool
from llama_index.core.vector_stores import SimpleVectorStore
from pydantic import (
    BaseModel,
    Field,
    PlainSerializer,
    SecretBytes,
    SecretStr,
    ValidationError,
    field_serializer,
)
from pydantic_settings import BaseSettings
from workflows import Workflow, step
from workflows.events import HumanResponseEvent, StartEvent, StopEvent

from llama_deploy.client.payload_encoding import encode_arguments, encode_event, encode_json_object
from llama_deploy.codec.plain_json import to_json_value
from llama_deploy.errors import SerializationError
from llama_deploy.messages import QueueMessage
from llama_deploy.portability.live_objects import check_portable
from llama_deploy.services.values.payloads import build_event, streamed_event
from llama_deploy.services.values.writing import Writing
from llama_deploy.types import TaskDefinition

# The library looks at all attributes of an agent.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
KEY = "sk-4f9a-never-shown"


class KeyedLLM(MockLLM):
    api_key: str = KEY

    def __init__(self) -> None:
        super().__init__(max_tokens=None)


class KeyedEmbedding(MockEmbedding):
    api_key: str = KEY

    def __init__(self) -> None:
        super().__init__(embed_dim=2)


class HandMadeModel(BaseModel):
    model: str = "small"
    api_key: str = KEY

    def complete(self, prompt: str) -> str:
        return prompt


@dataclass
class HandMadeClient:
    url: str = "http://localhost"
    auth_token: str = KEY

    async def fetch(self) -> str:
        return self.url


class EnvironmentSettings(BaseSettings):
    openai_api_key: str = KEY


class SecretHolder(BaseModel):
    key: SecretStr = SecretStr(KEY)


@dataclass
class Config:
    llm: Any = field(default_factory=KeyedLLM)


class Wrapper(BaseModel):
    inner: Any


class Sources(BaseModel):
    by_name: Mapping[str, Any]


class Database(BaseModel):
    host: str = "db"
    password: str = KEY

    def query(self, sql: str) -> str:
        return sql


class Mailbox(BaseModel):
    password: str = KEY

    async def read(self) -> str:
        return ""


class Account(BaseModel):
    name: str
    password: str

    def is_right(self, password: str) -> bool:
        return password == self.password

    def verify(self, password: str) -> bool:
        return self.is_right(password)


class Deck(BaseModel):
    cards: list[int]

    def __next__(self) -> int:
        return self.cards.pop()

    @cached_property
    def llm(self) -> KeyedLLM:
        return KeyedLLM()


@dataclass
class Hand:
    cards: list[int]

    def __next__(self) -> int:
        return self.cards.pop()


class Described(BaseModel):
    llm: Any = Field(default_factory=KeyedLLM)
    other: Annotated[Any, PlainSerializer(lambda _: "other")] = Field(default_factory=KeyedLLM)

    @field_serializer("llm")
    def _name_of(self, llm: Any) -> str:
        return type(llm).__name__


class Word(BaseModel):
    token: str

    def is_known(self) -> bool:
        return True


class Login(BaseModel):
    user: str
    password: str


class Done(StopEvent):
    count: int = 0


class Begin(StartEvent):
    api_key: str
    password: str = ""

    def masked(self, with_char: str) -> str:
        return with_char * len(self.api_key)


class Nothing(Workflow):
    @step
    async def end(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("value"))


def numbers() -> Iterator[int]:
    yield 1


async def async_numbers() -> AsyncIterator[int]:
    yield 1


def adds(a: int, b: int) -> int:
    return a + b


@cache
def connection() -> sqlite3.Connection:
    return sqlite3.connect(":memory:")


@pytest.fixture(scope="module", autouse=True)
def _close_connection() -> Iterator[None]:
    yield
    connection().close()


LIVE = {
    "llm": KeyedLLM,
    "embedding": KeyedEmbedding,
    "tool": lambda: FunctionTool.from_defaults(adds),
    "agent": lambda: FunctionAgent(llm=KeyedLLM()),
    "vector store": SimpleVectorStore,
    "workflow": Nothing,
    "model that acts": HandMadeModel,
    "dataclass that acts": HandMadeClient,
    "password with an address": Database,
    "password that is waited with": Mailbox,
    "settings": EnvironmentSettings,
    "secret": lambda: SecretStr(KEY),
    "secret bytes": lambda: SecretBytes(KEY.encode()),
    "secret field": SecretHolder,
    "in a dataclass": Config,
    "function": lambda: adds,
    "lambda": lambda: lambda: None,
    "method": lambda: KeyedLLM().complete,
    "module": lambda: ModuleType("some"),
    "class": lambda: KeyedLLM,
    "generator": numbers,
    "async generator": async_numbers,
    "iterator": lambda: iter([1]),
    "map": lambda: map(str, [1]),
    "file": lambda: io.StringIO(KEY),
    "lock": threading.Lock,
    "event": asyncio.Event,
    "connection": connection,
    "object": object,
}
WRAPPED = {
    "itself": lambda live: live,
    "in a list": lambda live: [1, live],
    "in a tuple": lambda live: (live,),
    "in a dict": lambda live: {"a": {"b": live}},
    "in a deque": lambda live: deque([live]),
    "in a mapping": lambda live: Sources(by_name=MappingProxyType({"a": live})),
    "in a model": lambda live: Wrapper(inner=live),
    "in an event": lambda live: HumanResponseEvent(answer=live),
    "in a list of another class": lambda live: UserList([live]),
    "in a view": lambda live: {"a": live}.values(),
    "in a proxy": lambda live: MappingProxyType({"a": live}),
    "in an array": lambda live: np.array([live, None], dtype=object),
}
IN_WORDS = r"^\$\.it.*(where the workflow runs|environment of the worker|pass a list of its items)"
live_objects = pytest.mark.parametrize("make", LIVE.values(), ids=list(LIVE))
wrapped = pytest.mark.parametrize("wrap", WRAPPED.values(), ids=list(WRAPPED))


def check(error: SerializationError) -> None:
    chain: BaseException | None = error
    while chain is not None:
        assert KEY not in str(chain)
        assert KEY not in repr(chain)
        chain = chain.__cause__ or chain.__context__


@live_objects
@wrapped
def test_a_client_refuses_live_objects(make: Any, wrap: Any) -> None:
    value = wrap(make())
    with pytest.raises(SerializationError, match=IN_WORDS) as caught:
        encode_arguments(None, {"it": value})
    check(caught.value)
    with pytest.raises(SerializationError, match=IN_WORDS) as caught:
        encode_json_object({"it": value})
    check(caught.value)


@live_objects
def test_a_client_refuses_events_with_live_objects(make: Any) -> None:
    with pytest.raises(SerializationError, match="HumanResponseEvent") as caught:
        encode_event(HumanResponseEvent(answer=make()))
    check(caught.value)


@live_objects
@wrapped
def test_results_and_streamed_events_hold_no_live_objects(make: Any, wrap: Any) -> None:
    live = make()
    if isinstance(live, type):
        return  # its name is written
    value = wrap(live)
    for encode in (lambda: to_json_value(value), lambda: streamed_event(HumanResponseEvent(it=value))):
        with pytest.raises(SerializationError) as caught:
            encode()
        check(caught.value)


@live_objects
@wrapped
def test_journals_and_state_hold_no_live_objects(make: Any, wrap: Any) -> None:
    extra = [HandMadeModel, HandMadeClient, EnvironmentSettings, SecretHolder, Config, Wrapper]
    extra += [Database, Mailbox, Sources]
    with pytest.raises(SerializationError) as caught:
        Writing(Nothing(), extra=extra).write(wrap(make()), path="$")
    check(caught.value)


def test_what_is_not_an_event_is_not_shown() -> None:
    with pytest.raises(SerializationError, match="got a dict") as caught:
        encode_event({"api_key": KEY})  # type: ignore[arg-type]
    check(caught.value)


def test_an_object_in_a_definition_is_not_shown() -> None:
    for build in (lambda: TaskDefinition(input=KeyedLLM()), lambda: QueueMessage(data=KeyedLLM())):
        with pytest.raises(ValidationError) as caught:
            build()
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        {"api_key": KEY, "password": "p"},
        Begin(api_key=KEY),
        Login(user="u", password="p"),
        Account(name="u", password="p"),
        Deck(cards=[1]),
        Hand(cards=[1]),
        Described(),
        [Word(token="a-long-token-of-a-text")],
        SecretStr(""),
        HandMadeModel(api_key=""),
        [Document(text="a", metadata={"token": "b"})],
        [NodeWithScore(node=TextNode(text="a"), score=0.5)],
        [ChatMessage(role="user", content="a")],
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_data_passes(value: Any) -> None:
    written = to_json_value(value)
    assert encode_arguments(None, {"it": value}) == {"it": written}
    assert json.loads(encode_event(HumanResponseEvent(it=value)).event_obj_str)["value"] == {
        "_data": {"it": written}
    }


def test_what_a_property_has_cached_is_not_looked_at() -> None:
    deck = Deck(cards=[1])
    assert deck.llm.api_key
    assert to_json_value(deck) == encode_arguments(None, {"it": deck})["it"] == {"cards": [1]}


def test_the_result_of_a_stop_event_of_ones_own_is_looked_at() -> None:
    with pytest.raises(SerializationError, match=r"^\$\.result\[0\] is a .*KeyedLLM") as caught:
        to_json_value(Done(result=[KeyedLLM()]))
    check(caught.value)


def test_an_iterator_is_to_be_a_list() -> None:
    for value in (zip([1], [2], strict=True), {"a": 1}.keys(), range(3)):
        with pytest.raises(SerializationError, match="a list of its items"):
            to_json_value(value)


def test_the_text_of_an_object_is_data_unless_it_may_show_a_key() -> None:
    for harmless in (lambda: None, iter([1]), Login(user="u", password="p"), object()):
        check_portable([harmless], path="$", as_text=True)
    for live in (KeyedLLM(), HandMadeModel(), Described()):
        with pytest.raises(SerializationError):
            check_portable([live], path="$", as_text=True)


def test_a_field_that_is_excluded_is_not_looked_at() -> None:
    class Answer(HumanResponseEvent):
        text: str
        llm: Any = Field(default=None, exclude=True)

    assert KEY not in encode_event(Answer(text="a", llm=KeyedLLM())).event_obj_str


class Hashable(HandMadeModel):
    def __hash__(self) -> int:
        return 1


def test_a_secret_in_a_key_is_found() -> None:
    for value in ({Hashable(): 1}, [{(1, Hashable()): object()}]):
        for encode in (to_json_value, lambda it: encode_arguments(None, {"it": it})):
            with pytest.raises(SerializationError, match="Hashable, which has the secret") as caught:
                encode(value)
            check(caught.value)


def test_an_llm_is_refused_without_a_key() -> None:
    with pytest.raises(SerializationError, match="Resource"):
        encode_arguments(None, {"llm": MockLLM(max_tokens=1)})


def test_a_secret_is_found_at_any_depth() -> None:
    value: Any = KeyedLLM()
    for _ in range(200):
        value = [value]
    with pytest.raises(SerializationError, match="KeyedLLM"):
        encode_arguments(None, {"it": value})


def test_a_value_that_contains_itself_ends() -> None:
    circle: dict[str, Any] = {}
    circle["a"] = circle["b"] = [circle, circle]
    with pytest.raises(SerializationError, match=r"\$\.it cannot be converted"):
        encode_arguments(None, {"it": circle})


class Ingest(StartEvent):
    documents: list[Document]
    nodes: list[NodeWithScore]
    messages: list[ChatMessage]
    raw: list[dict[str, Any]]


NODES = [NodeWithScore(node=TextNode(text="a"), score=0.5), NodeWithScore(node=Document(text="b"))]


def test_declared_documents_nodes_and_messages_arrive_with_their_types() -> None:
    given = Ingest(
        documents=[Document(text="a")], nodes=NODES, messages=[ChatMessage(content="hi")], raw=[{"a": 1}]
    )
    arrived = build_event(
        Ingest, encode_arguments(None, {name: getattr(given, name) for name in Ingest.model_fields})
    )
    assert isinstance(arrived, Ingest)
    assert arrived.model_dump() == given.model_dump()
    assert [type(item.node) for item in arrived.nodes] == [TextNode, Document]


def test_documents_and_nodes_arrive_with_their_types_if_they_are_not_declared() -> None:
    given = {"documents": [Document(text="a")], "found": {"nodes": NODES}}
    arrived = build_event(StartEvent, encode_arguments(None, given))
    assert arrived.documents == given["documents"]
    assert arrived.found == given["found"]
    sent = json.loads(encode_event(HumanResponseEvent(nodes=NODES)).event_obj_str)["value"]
    assert build_event(HumanResponseEvent, sent).nodes == NODES


@pytest.mark.parametrize("by_alias", [True, False], ids=["of an earlier client", "of this one"])
def test_documents_and_nodes_are_read_with_either_name_of_their_metadata(*, by_alias: bool) -> None:
    given = [Document(text="a", metadata={"k": 1}), NodeWithScore(node=TextNode(text="b", metadata={"k": 2}))]
    sent = [node.model_dump(mode="json", by_alias=by_alias) for node in given]
    assert ("extra_info" in sent[0]) == by_alias
    if not by_alias:
        assert encode_arguments(None, {"it": given}) == {"it": sent}
    arrived = build_event(
        Ingest, {"documents": sent[:1], "nodes": sent[1:], "messages": [], "raw": [], "it": sent}
    )
    assert isinstance(arrived, Ingest)
    assert [*arrived.documents, *arrived.nodes] == arrived.it == given


@pytest.mark.parametrize("value", [{"class_name": "Document", "text_resource": 5}, {"class_name": [1]}])
def test_what_only_looks_like_a_document_stays_plain(value: dict[str, Any]) -> None:
    assert build_event(StartEvent, {"it": value}).it == value
    assert build_event(Ingest, {"documents": [], "nodes": [], "messages": [], "raw": [value]}).raw == [value]
