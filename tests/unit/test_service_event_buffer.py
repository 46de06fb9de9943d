"""The events of an attempt between the step that streams them and the control plane."""

from __future__ import annotations

import pytest

from llama_deploy.services.run import attempt_reports as module
from llama_deploy.services.run.attempt_reports import EventBuffer
from llama_deploy.services.values.payloads import StreamedEvent
from llama_deploy.types.instance_protocol import EventPayload


def filled(count: int, size: int = 10, max_characters: int = 1000) -> EventBuffer:
    buffer = EventBuffer(max_characters=max_characters)
    for number in range(count):
        buffer.append(StreamedEvent(EventPayload(type="E", data={"n": number}), size))
    return buffer


def numbers(events: list[EventPayload]) -> list[int]:
    return [event.data["n"] for event in events]


def test_a_batch_is_as_large_as_its_limit() -> None:
    buffer = filled(5)
    assert numbers(buffer.batch(0, limit=25)) == [0, 1]
    assert numbers(buffer.batch(3, limit=25)) == [3, 4]
    assert numbers(filled(2, size=30).batch(0, limit=25)) == [0], "a larger event travels alone"


def test_numbers_stay_when_events_are_dropped() -> None:
    buffer = filled(5)
    buffer.mark_sent(3)
    buffer.drop(2)
    assert (buffer.first, buffer.sent, buffer.count) == (2, 3, 5)
    assert [event.payload.data["n"] for event in buffer.unsent()] == [3, 4]
    assert numbers(buffer.batch(2, limit=30)) == [2, 3, 4]
    buffer.mark_sent(1)
    assert buffer.sent == 3, "a late confirmation takes nothing back"


def test_dropping_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 4)
    buffer = filled(4)
    assert buffer.is_full
    assert buffer.is_crowded
    buffer.drop(4)
    assert not buffer.is_full
    assert not buffer.is_crowded
    monkeypatch.undo()
    assert filled(3, max_characters=30).is_full
    assert not filled(2, max_characters=30).is_full
    assert filled(2, max_characters=30).is_crowded
    assert not filled(1, max_characters=30).is_crowded


def test_clearing_keeps_what_was_sent() -> None:
    buffer = filled(3)
    buffer.mark_sent(1)
    buffer.clear()
    assert (buffer.first, buffer.sent, buffer.count) == (1, 1, 1)
    assert buffer.rest_fits
