from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.state_stores.base import Notice
from llama_deploy.state_stores.notices import MAX_TEXT_BYTES, Mailbox, decode_notice, encode_notice

ids = st.frozensets(st.text(min_size=1, max_size=200), max_size=60)
times = st.none() | st.datetimes(timezones=st.just(UTC))


@given(ids, times)
def test_what_is_told_arrives(task_ids: frozenset[str], due: datetime | None) -> None:
    texts = encode_notice(Notice(task_ids, due=due), sender="me")
    decoded = [decode_notice(text) for text in texts]
    assert all(len(text.encode()) <= MAX_TEXT_BYTES for text in texts)
    assert {sender for sender, _ in decoded} == {"me"}
    if any(notice.everything for _, notice in decoded):
        assert len(texts) == 1
        assert sum(map(len, task_ids)) > MAX_TEXT_BYTES
    else:
        assert frozenset[str]().union(*(notice.task_ids for _, notice in decoded)) == task_ids
    assert {notice.due for _, notice in decoded} == {due}


def test_too_much_to_tell_is_everything() -> None:
    many = Notice(frozenset(f"{n:0200}" for n in range(1000)))
    assert [decode_notice(text)[1] for text in encode_notice(many, sender="me")] == [Notice(everything=True)]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '["a", "yesterday", []]', "from another program"])
def test_what_cannot_be_read_means_everything(text: str) -> None:
    assert decode_notice(text)[1] == Notice(everything=True)


async def test_what_comes_together_is_read_together() -> None:
    mailbox = Mailbox()
    taking = asyncio.create_task(mailbox.take())
    first, second = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    mailbox.put(Notice(frozenset({"a"}), due=second))
    mailbox.put(Notice(frozenset({"b"}), due=first, lost=True))
    assert await taking == Notice(frozenset({"a", "b"}), due=first, lost=True)
    mailbox.put(Notice(frozenset(map(str, range(10_001)))))
    assert await mailbox.take() == Notice(everything=True)


def test_a_revoked_key_is_told_and_merged() -> None:
    (text,) = encode_notice(Notice(keys=True), sender="me")
    assert decode_notice(text) == ("me", Notice(keys=True))
    assert decode_notice('["me", null, [], true]') == ("me", Notice(feeds=True))


def test_the_interest_in_feeds_is_told_and_merged() -> None:
    (text,) = encode_notice(Notice(feeds=True), sender="me")
    assert decode_notice(text) == ("me", Notice(feeds=True))
