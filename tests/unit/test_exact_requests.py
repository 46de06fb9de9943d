"""What servers read from requests is never converted: no `true` to a number, no 1 to a boolean or a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from tests.unit.test_wire_models import DESCRIBING, Example, wire_models

from llama_deploy.message_queues.simple.settlement import Settlement
from llama_deploy.types.epoch import from_microseconds, to_microseconds
from llama_deploy.types.exact_values import MAX_NUMBER, Count, Flag, Integer, Seconds, Timestamp

QUERIES: Final = {"AuditQuery", "ReceiveQuery", "TaskListQuery", "_WaitQuery"}
"""Read from queries, where numbers and booleans are texts."""
ANSWERS: Final = {
    *("Accepted", "ApiKeyPage", "ApiKeyView", "AuditEntry", "AuditPage", "BulkResult", "CheckOutcome"),
    *("ClaimReply", "CreatedApiKey"),
    *("CreatedToken", "FeedItem", "Health", "HeartbeatReply", "HistoryItem", "HistoryPage", "JournalReply"),
    *("NewAttempt", "PartReply", "PurgeAnswer", "PurgeCount", "QueueHealth", "QueueInfo", "Received"),
    *("ReceivedBatch", "Registration", "ServiceBacklog", "SessionPage", "SessionState", "SessionSummary"),
    *(
        "StorageView",
        "StreamCursor",
        "StreamedAttempt",
        "TableSize",
        "TaskChange",
        "TaskCount",
        "TaskCounts",
        "TaskStream",
    ),
    "TopicInfo",
}
"""Only sent by servers. `tests/integration/test_exact_bodies.py` shows that no request has them."""
OWN: Final = {
    *("AskedCount", "RunSnapshot", "Snapshot", "StreamedItem", "Wait", "WaiterDetails", "WorkflowState"),
    *("PublishedEvent", "PublishedResult", "RetentionRule", "Routing"),
}
"""Written and read by one side: what runs and control planes keep, what a service publishes, settings."""
NOT_READ: Final = ANSWERS | OWN | DESCRIBING

NUMBERS: Final = frozenset({"int", "float", "bool"})
KINDS: Final = NUMBERS | {"datetime", "date", "time", "timedelta", "decimal"}
INT_64: Final = 2**63
TIMESTAMP: Final = TypeAdapter(Timestamp).core_schema


def findings(schema: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the scalars in a core schema of pydantic: where, and what."""
    if isinstance(schema, list | tuple):
        for each in schema:
            yield from findings(each, path)
    if not isinstance(schema, dict) or schema == TIMESTAMP:
        return
    kind = schema.get("type")
    if kind in KINDS and not schema.get("strict"):
        yield path, f"lax {kind}"
    if kind == "int" and not is_bounded(schema):
        yield path, "unbounded int"
    for name, inner in schema.items():
        if name == "fields" and isinstance(inner, dict):
            for field, each in inner.items():
                yield from findings(each, f"{path}.{field}")
        elif name not in {"default", "metadata", "serialization", "cls", "config"}:
            yield from findings(inner, path)


def is_bounded(schema: dict[str, Any]) -> bool:
    """Tell whether a column of 64 bits holds every integer of a schema."""
    least, most = schema.get("ge", schema.get("gt")), schema.get("le", schema.get("lt"))
    return least is not None and most is not None and -INT_64 <= least <= most < INT_64


def findings_of(form: Any) -> set[tuple[str, str]]:
    return set(findings(TypeAdapter(form).core_schema))


FITTING: Final[Mapping[str, Mapping[str, Any]]] = {"NewApiKey": {"scopes": ["tasks:read"]}}
"""Values that fit the others of an example."""


def read_forms() -> list[Any]:
    """Return all that servers may read: what is not named above, so that nothing new is forgotten."""
    return [Settlement, *(model for model in wire_models() if model.__name__ not in NOT_READ)]


def test_only_models_that_exist_are_left_out() -> None:
    assert {model.__name__ for model in wire_models()} >= NOT_READ | QUERIES


@pytest.mark.parametrize("form", read_forms(), ids=lambda form: form.__name__)
def test_nothing_that_a_server_reads_is_lax_or_unbounded(form: Any) -> None:
    allowed = {f"lax {kind}" for kind in NUMBERS} if form.__name__ in QUERIES else set()
    assert {finding for finding in findings_of(form) if finding[1] not in allowed} == set()


@pytest.mark.parametrize(
    ("form", "found"),
    [
        (int, {("", "lax int"), ("", "unbounded int")}),
        (float | None, {("", "lax float")}),
        (list[bool], {("", "lax bool")}),
        (dict[str, datetime], {("", "lax datetime")}),
        (Settlement, set()),
        (tuple[Count, Flag, Integer, Seconds, Timestamp | None], set()),
    ],
    ids=["int", "float", "list of bool", "dict of datetime", "model", "exact types"],
)
def test_what_is_lax_is_found(form: Any, found: set[tuple[str, str]]) -> None:
    assert findings_of(form) == found


WRONG: Final[dict[str, list[Any]]] = {
    "integer": [True, "1", 1.5, 2**63, -(2**63) - 1],
    "number": [True, "1"],
    "boolean": [1, 0, "true", "yes"],
    "date-time": [0, -2.00001, "0", "-2.00001", "1767323045", "2026-01-02", "2026-01-02T03:04:05", True],
}


@dataclass(frozen=True)
class Corruption:
    """Changes examples of JSON schemas: one scalar is not of the form."""

    definitions: dict[str, Any]

    def of(self, schema: dict[str, Any], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Yield copies of an example, each with the place of the scalar."""
        if "$ref" in schema:
            yield from self.of(self.definitions[schema["$ref"].rpartition("/")[2]], value)
        elif "anyOf" in schema:
            branches = [each for each in schema["anyOf"] if each != {"type": "null"}]
            if len(branches) == 1:  # what is wrong for one of several may be right for another
                yield from self.of(branches[0], value)
        elif isinstance(value, dict | list):
            for name, inner in self._parts(schema, value):
                for place, each in self.of(inner, value[name]):
                    changed = copy(value)
                    changed[name] = each
                    yield (str(name), *place), changed
        elif not {"const", "enum"} & {*schema}:
            yield from (((), wrong) for wrong in WRONG.get(schema.get("format", schema.get("type", "")), []))

    @staticmethod
    def _parts(schema: dict[str, Any], value: dict[str, Any] | list[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield what is in an object or a list: under which name or number, and its schema."""
        if isinstance(value, dict):
            yield from ((name, each) for name, each in schema.get("properties", {}).items() if name in value)
        else:
            yield from enumerate(schema.get("prefixItems") or [schema["items"]])


@pytest.mark.parametrize(
    "model",
    [form for form in read_forms() if isinstance(form, type) and form.__name__ not in QUERIES],
    ids=lambda form: form.__name__,
)
def test_json_and_parsed_json_are_refused_alike(model: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(model)
    schema = adapter.json_schema(mode="validation")
    definitions = schema.get("$defs", {})
    example = {**Example(definitions, newer=False).of(schema), **FITTING.get(model.__name__, {})}
    adapter.validate_python(example)
    for _, wrong in Corruption(definitions).of(schema, example):
        for read, sent in ((adapter.validate_python, wrong), (adapter.validate_json, json.dumps(wrong))):
            with pytest.raises(ValidationError):
                read(sent)


TIMES: Final = [
    ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    ("2026-01-02t03:04:05.25z", datetime(2026, 1, 2, 3, 4, 5, 250_000, tzinfo=UTC)),
    ("2026-01-02T03:04:05.123456+05:30", datetime(2026, 1, 1, 21, 34, 5, 123_456, tzinfo=UTC)),
]


@pytest.mark.parametrize(("text", "time"), TIMES)
def test_a_time_is_read_from_its_text_and_kept_as_it_is(text: str, time: datetime) -> None:
    adapter: TypeAdapter[datetime] = TypeAdapter(Timestamp)
    assert adapter.validate_python(text) == adapter.validate_json(json.dumps(text)) == time
    assert adapter.validate_python(time) is time
    assert adapter.validate_json(adapter.dump_json(time)) == time


@pytest.mark.parametrize(
    "wrong",
    [
        *WRONG["date-time"],
        *("2026-01-02 03:04:05Z", "2026-01-02T03:04Z", "2026-01-02T24:00:00Z", "2026-02-30T00:00:00Z"),
        *("0001-01-01T00:00:00+00:01", "9999-12-31T23:59:00-00:01", "2026-01-02T03:04:05Z\n", ""),
    ],
)
def test_what_is_not_a_time_is_refused_with_the_form_of_one(wrong: object) -> None:
    adapter: TypeAdapter[datetime] = TypeAdapter(Timestamp)
    expected = r"should be a date and a time .* such as 2026-01-02T03:04:05Z"
    with pytest.raises(ValidationError, match=expected):
        adapter.validate_python(wrong)
    with pytest.raises(ValidationError, match=expected):
        adapter.validate_json(json.dumps(wrong))


def test_a_time_without_an_offset_is_refused() -> None:
    with pytest.raises(ValidationError, match="offset from UTC"):
        TypeAdapter(Timestamp).validate_python(datetime(2026, 1, 2))  # noqa: DTZ001 - that is the case


@pytest.mark.parametrize("end", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_all_times_that_have_a_form_in_utc_can_be_stored(end: datetime) -> None:
    adapter: TypeAdapter[datetime] = TypeAdapter(Timestamp)
    read = adapter.validate_json(adapter.dump_json(end))
    assert from_microseconds(to_microseconds(read)) == read == end


@pytest.mark.parametrize("form", [Integer, Count, int])
def test_integers_end_where_all_readers_of_json_are_exact(form: Any) -> None:
    adapter: TypeAdapter[int] = TypeAdapter(form)
    assert adapter.validate_json(str(MAX_NUMBER)) == MAX_NUMBER
    if form is not int:
        with pytest.raises(ValidationError):
            adapter.validate_json(str(MAX_NUMBER + 1))


class _Forgotten(BaseModel):
    """A model that somebody has written without a thought of this."""

    count: int = 0


def test_a_new_model_is_looked_at() -> None:
    assert findings_of(_Forgotten) == {(".count", "lax int"), (".count", "unbounded int")}
