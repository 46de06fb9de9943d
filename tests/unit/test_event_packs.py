"""Packs give back the events that were packed, in little space."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.errors import InternalServerError
from llama_deploy.state_stores.event_packs import (
    MAX_PACK_CHARACTERS,
    MAX_PACK_EVENTS,
    packed,
    unpacked,
)
from llama_deploy.state_stores.records import EventPackRecord, EventRecord

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_texts = st.one_of(
    st.dictionaries(st.sampled_from("abc"), _json, max_size=3).map(json.dumps),
    st.dictionaries(st.sampled_from("ab"), st.text(max_size=9), max_size=2).map(
        lambda data: json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    ),
    st.sampled_from(["{}", "[]", '"text"', '{"a": 1, "a": 2}', '{ "a": 1}', "not JSON"]),
    # Texts that grow, change at their end, and begin again.
    st.builds(
        lambda length, end: json.dumps({"a": end, "response": '"é\\' * length + end}),
        st.integers(min_value=0, max_value=40),
        st.text(max_size=3),
    ),
)
_number = st.none() | st.integers(min_value=-1, max_value=3)
_streams = st.lists(st.tuples(st.sampled_from(["Delta", "Tool"]), _texts, _number, _number), max_size=12)


def stream(parts: Sequence[tuple[str, str, int | None, int | None]]) -> list[EventRecord]:
    return [
        EventRecord("t1", position, name, data, attempt=attempt, step_run=step_run)
        for position, (name, data, attempt, step_run) in enumerate(parts)
    ]


def read(packs: Sequence[EventPackRecord], after: int = -1) -> list[EventRecord]:
    return [event for pack in packs for event in unpacked(pack, after=after)]


@given(parts=_streams, cuts=st.lists(st.integers(min_value=1, max_value=5), max_size=8))
def test_packed_in_any_pieces_a_stream_is_read_as_it_was_from_any_cursor(
    parts: list[tuple[str, str, int | None, int | None]], cuts: list[int]
) -> None:
    events = stream(parts)
    packs: list[EventPackRecord] = []
    left = events
    for cut in [*cuts, len(events)]:
        if piece := left[:cut]:
            packs[-1:] = packed(piece, onto=packs[-1] if packs else None)
            left = left[cut:]
    assert read(packs) == events
    for after in range(-1, len(events)):
        assert read(packs, after) == events[after + 1 :]


def answer(words: Sequence[str]) -> list[EventRecord]:
    """Return what an agent streams: each event repeats the answer so far."""
    response = ""
    events = []
    for position, word in enumerate(words):
        response += word
        data: dict[str, Any] = {
            "delta": word,
            "response": response,
            "current_agent_name": "Agent",
            "tool_calls": [],
            "raw": None,
        }
        events.append(EventRecord("t1", position, "AgentStream", json.dumps(data), attempt=1, step_run=3))
    return events


def words(count: int) -> list[str]:
    chosen = random.Random(1)  # noqa: S311 - not a secret
    known = ["".join(chosen.choices("etaoinshrdlu", k=chosen.randint(2, 9))) + " " for _ in range(600)]
    return chosen.choices(known, k=count)


def test_an_answer_that_is_repeated_in_each_event_takes_space_in_proportion_to_its_length() -> None:
    sizes = {}
    for count in (1_000, 2_000, 4_000):
        said = words(count)
        packs = packed(answer(said))
        sizes[count] = sum(len(pack.data) for pack in packs) / len("".join(said))
        assert read(packs) == answer(said)
    assert all(size <= 3 for size in sizes.values()), sizes


def test_a_pack_ends_when_it_is_full() -> None:
    many = [EventRecord("t1", n, "Number", f'{{"n": {n}}}') for n in range(MAX_PACK_EVENTS + 5)]
    packs = packed(many)
    assert [pack.length for pack in packs] == [MAX_PACK_EVENTS, 5]
    chosen = random.Random(1)  # noqa: S311 - not a secret
    large = [
        EventRecord("t1", n, "Page", json.dumps({"text": chosen.randbytes(40_000).hex()})) for n in range(10)
    ]
    packs = packed(large)
    assert [pack.length for pack in packs] == [-(-MAX_PACK_CHARACTERS // 80_000)] * 2 + [2]
    assert read(packs) == large


def test_a_pack_of_a_newer_release_is_not_read() -> None:
    (pack,) = packed(answer(["a", "b"]))
    with pytest.raises(InternalServerError, match="format 2"):
        list(unpacked(pack._replace(format=2)))
