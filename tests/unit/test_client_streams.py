from __future__ import annotations

import json

import pytest

from llama_deploy.client.event_streams import EventStream, ObjectStream
from llama_deploy.errors import InternalServerError, UnavailableError
from llama_deploy.web.http_exchange import HttpRequest


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def line(index: int, *, terminal: bool = False) -> bytes:
    return json.dumps({"index": index, "type": "Step", "data": {"n": index}, "terminal": terminal}).encode()


def test_events_arrive_up_to_the_terminal_one() -> None:
    stream = EventStream("t1", timeout=10)
    assert stream.request() == HttpRequest("GET", "/tasks/t1/events", params={"after": -1})
    event = stream.feed(line(0))
    assert event is not None
    assert (event.index, event.type, event.data) == (0, "Step", {"n": 0})
    assert not stream.finished
    assert stream.feed(line(1, terminal=True)) is not None
    assert stream.finished
    assert stream.interrupted(None) is None


def test_an_error_after_the_terminal_event_is_ignored() -> None:
    stream = EventStream("t1", timeout=10)
    stream.feed(line(0, terminal=True))
    assert stream.interrupted(UnavailableError("gone")) is None


def test_keep_alives_are_not_events() -> None:
    assert EventStream("t1", timeout=10).feed(b"") is None


def test_a_broken_stream_resumes_after_the_last_event_without_duplicates() -> None:
    stream = EventStream("t1", timeout=10)
    stream.feed(line(0))
    stream.feed(line(1))
    assert stream.interrupted(UnavailableError("gone")) == 0.1
    assert stream.request().params == {"after": 1}
    assert stream.feed(line(1)) is None
    assert stream.feed(line(2)) is not None


def test_a_stream_starts_after_a_given_event() -> None:
    assert EventStream("t1", after=5, timeout=10).request().params == {"after": 5}


def test_a_response_that_ends_early_counts_as_broken() -> None:
    stream = EventStream("t1", timeout=10, clock=(clock := Clock()))
    assert stream.interrupted(None) == 0.1
    clock.now = 10
    with pytest.raises(UnavailableError, match="before its terminal event"):
        stream.interrupted(None)


def test_retries_end_without_progress_and_restart_with_it() -> None:
    stream = EventStream("t1", timeout=10, clock=(clock := Clock()))
    clock.now = 8
    assert stream.interrupted(UnavailableError("gone")) == 0.1
    assert stream.interrupted(UnavailableError("gone")) == 0.2
    stream.feed(b"")
    clock.now = 17
    assert stream.interrupted(UnavailableError("gone")) == 0.1
    clock.now = 18
    with pytest.raises(UnavailableError, match="gone"):
        stream.interrupted(UnavailableError("gone"))


@pytest.mark.parametrize("bad", [b"<html>", b"[]", b'{"index": "x"}'])
def test_lines_of_an_unexpected_form_raise(bad: bytes) -> None:
    with pytest.raises(InternalServerError):
        EventStream("t1", timeout=10).feed(bad)


def test_plain_objects_are_read_once_without_retries() -> None:
    stream = ObjectStream(HttpRequest("GET", "/somewhere"))
    assert stream.feed(b'{"a": 1}') == {"a": 1}
    assert stream.feed(b"") is None
    assert stream.interrupted(None) is None
    with pytest.raises(UnavailableError):
        stream.interrupted(UnavailableError("gone"))
