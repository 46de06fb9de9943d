"""What the readers of a feed are told, and what the cursor of a feed says."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.control_plane.storage.feed_interest import FeedInterest
from llama_deploy.control_plane.streams import task_feed
from llama_deploy.control_plane.streams.feed_cursor import (
    MARGIN,
    MAX_AGE,
    FeedFilter,
    decode_feed_cursor,
    encode_feed_cursor,
)
from llama_deploy.control_plane.streams.task_feed import FeedReader, TaskFeed
from llama_deploy.errors import CursorExpiredError, InvalidRequestError
from llama_deploy.state_stores.feed_repository import TaskChangeRecord
from llama_deploy.testing.records import NOW, a_task
from llama_deploy.types import TaskStatus

_filters = st.builds(
    FeedFilter,
    st.frozensets(st.sampled_from(["a", "b", "a\nb"])),
    st.sampled_from([None, "s1", "s2"]),
    st.frozensets(st.sampled_from(list(TaskStatus))),
)


@given(st.integers(min_value=0, max_value=10**15), _filters)
def test_a_cursor_leads_back_with_a_margin(microseconds: int, wanted: FeedFilter) -> None:
    at = NOW + timedelta(microseconds=microseconds)
    assert decode_feed_cursor(encode_feed_cursor(at, wanted), wanted, now=at + MAX_AGE) == at - MARGIN


@given(_filters, _filters)
def test_a_cursor_belongs_to_its_filter(one: FeedFilter, other: FeedFilter) -> None:
    cursor = encode_feed_cursor(NOW, one)
    if one == other:
        assert decode_feed_cursor(cursor, other, now=NOW) == NOW - MARGIN
    else:
        with pytest.raises(InvalidRequestError, match="another filter"):
            decode_feed_cursor(cursor, other, now=NOW)


@given(st.text(max_size=30))
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="not a cursor"):
        decode_feed_cursor(text, FeedFilter(), now=NOW)


def test_an_old_cursor_has_expired() -> None:
    cursor = encode_feed_cursor(NOW, FeedFilter())
    with pytest.raises(CursorExpiredError):
        decode_feed_cursor(cursor, FeedFilter(), now=NOW + MAX_AGE + timedelta(seconds=1))


def change(
    task_id: str = "t1", status: TaskStatus = TaskStatus.QUEUED, *, second: int = 0
) -> TaskChangeRecord:
    changed_at = NOW + timedelta(seconds=second)
    return TaskChangeRecord.of(a_task(task_id, status=status, status_changed_at=changed_at))


def told(reader: FeedReader) -> list[tuple[str, TaskStatus]]:
    return [(each.record.task_id, each.record.status) for each in reader.take()[0]]


def test_a_reader_is_told_the_last_status_of_each_task_once() -> None:
    feed = TaskFeed()
    with feed.reader(FeedReader(FeedFilter())) as reader:
        feed.committed([change("t1"), change("t2")])
        feed.committed([change("t1", TaskStatus.RUNNING, second=1)])
        assert told(reader) == [("t2", TaskStatus.QUEUED), ("t1", TaskStatus.RUNNING)]
        feed.committed([change("t1", TaskStatus.RUNNING, second=1)])
        assert told(reader) == []


def test_a_reader_of_a_status_is_not_told_of_a_task_that_has_left_it() -> None:
    feed = TaskFeed()
    with feed.reader(FeedReader(FeedFilter(statuses=frozenset({TaskStatus.QUEUED})))) as reader:
        feed.committed([change("t1"), change("t1", TaskStatus.RUNNING, second=1), change("t2")])
        assert told(reader) == [("t2", TaskStatus.QUEUED)]


def test_what_was_read_before_something_newer_was_told_is_read_again() -> None:
    feed = TaskFeed()
    with feed.reader(FeedReader(FeedFilter())) as reader:
        number = feed.number
        feed.committed([change("t1", TaskStatus.RUNNING, second=1)])
        assert feed.read([change("t1"), change("t2")], number=number) == ["t1"]
        assert told(reader) == [("t1", TaskStatus.RUNNING), ("t2", TaskStatus.QUEUED)]
        assert feed.read([change("t1", TaskStatus.SUCCEEDED, second=2)], number=feed.number) == []
        assert told(reader) == [("t1", TaskStatus.SUCCEEDED)]


def test_a_reader_for_whom_too_much_waits_has_to_read_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_feed, "MAX_WAITING", 3)
    feed = TaskFeed()
    with feed.reader(FeedReader(FeedFilter())) as reader:
        feed.committed([change(f"t{n}") for n in range(3)])
        assert not reader.missed
        feed.committed([change("t3")])
        assert reader.missed
        assert told(reader) == []


def test_a_reader_with_too_many_open_tasks_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_feed, "MAX_STREAMED", 3)
    feed = TaskFeed()
    with feed.reader(FeedReader(FeedFilter(), streams=True)) as reader:
        feed.committed([change(f"t{n}") for n in range(3)])
        assert not reader.closing
        feed.committed([change("t3")])
        assert reader.closing


def test_what_changes_while_the_open_tasks_are_read_is_not_lost() -> None:
    feed = TaskFeed()
    with feed.reader(FeedReader(FeedFilter(), streams=True, is_loading=True)) as reader:
        feed.committed([change("new"), change("open")])
        feed.grown(["open", "other"])
        reader.follow("open", after=7)
        reader.followed()
        assert reader.streamed == {"open": 7, "new": -1}
        assert set(reader.grown) == {"open", "new"}
        feed.grown(["other"])
        assert "other" not in reader.grown
        feed.deleted(["open"])
        assert reader.streamed == {"new": -1}
        assert reader.take()[1] == ["open"]


def test_interest_ends_by_itself() -> None:
    now = [0.0]
    interest = FeedInterest(lambda: now[0])
    assert not interest.is_shown()
    interest.note()
    now[0] = 19.0
    assert interest.is_shown()
    now[0] = 21.0
    assert not interest.is_shown()
