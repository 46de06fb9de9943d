"""Streamed events as objects of their classes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from workflows.events import Event, StopEvent

from llama_deploy.client.event_classes import EventClasses, ObjectsOfEvents, names_of
from llama_deploy.client.event_streams import EventStream
from llama_deploy.errors import InvalidRequestError, SerializationError
from llama_deploy.types import TaskEvent


class Weather(Event):
    degrees: int


def event(name: str, **data: Any) -> TaskEvent:
    return TaskEvent(index=0, type=name, data=data)


def two_classes() -> list[type[Event]]:
    """Return two classes of the same name."""
    return [type("Twice", (Event,), {}), type("Twice", (Event,), {})]


def test_an_imported_class_is_found_by_its_name() -> None:
    classes = EventClasses(None)
    assert classes.object_of(event("Weather", degrees=7)) == Weather(degrees=7)
    assert classes.object_of(event("StopEvent", result=3)) == StopEvent(result=3)


def test_an_unknown_class_or_one_of_several_leaves_the_event_as_it_is() -> None:
    classes = EventClasses(None)
    unknown = event("Unknown", n=1)
    assert classes.object_of(unknown) is unknown
    several = two_classes()
    assert len(several) == 2
    ambiguous = event("Twice")
    assert classes.object_of(ambiguous) is ambiguous


def test_a_class_that_is_given_comes_first() -> None:
    first, second = two_classes()
    assert type(EventClasses([second, "Weather"]).object_of(event("Twice"))) is second
    assert type(EventClasses([first]).object_of(event("Twice"))) is first


def test_fields_that_do_not_match_a_given_class_are_an_error() -> None:
    wrong = event("Weather", degrees="warm")
    assert EventClasses(None).object_of(wrong) is wrong
    with pytest.raises(SerializationError, match=r"event 0 of type Weather .* degrees"):
        EventClasses([Weather]).object_of(wrong)


def test_names_are_checked() -> None:
    assert names_of([Weather, "StopEvent"]) == ("Weather", "StopEvent")
    assert names_of(None) == ()
    for wrong in ("", " ", "A,B"):
        with pytest.raises(InvalidRequestError):
            names_of([wrong])


def test_a_stream_of_objects_resumes_as_that_of_its_events() -> None:
    events = EventStream("t1", timeout=10, types=("Weather",), internal=True)
    stream = ObjectsOfEvents(events, EventClasses([Weather]))
    line = {"index": 4, "type": "Weather", "data": {"degrees": 7}, "terminal": False}
    assert stream.feed(json.dumps(line).encode()) == Weather(degrees=7)
    assert stream.request().params == {"after": 4, "types": "Weather", "internal": "true"}
    assert stream.feed(b'{"cursor": 9}') is None
    assert stream.request().params["after"] == 9
    assert stream.interrupted(None) == 0.1
    assert stream.feed(b"") is None
    assert stream.feed(b'{"index": 10, "type": "StopEvent", "data": {}, "terminal": true}') == StopEvent()
    assert stream.interrupted(None) is None
