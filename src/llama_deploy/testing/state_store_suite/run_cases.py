"""What belongs to a task: its events, its inbox, its run."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import pytest

from llama_deploy.errors import ConflictError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import EventRecord, InboxRecord, JournalRecord, RunHeadRecord
from llama_deploy.testing.state_store_suite.base import StoreTests


class RunTests(StoreTests):
    """A store keeps events, inboxes and runs."""

    async def test_events_are_read_from_a_cursor(self, store: StateStore) -> None:
        events = [
            EventRecord(
                "t1", n, "Progress", f'{{"n": {n}}}', terminal=n == 4, attempt=n or None, step_run=n or None
            )
            for n in range(5)
        ]
        other = EventRecord("t2", 0, "Progress", "{}")
        await store.transact(lambda tx: tx.events.insert([*reversed(events), other]))
        assert await store.read(lambda tx: tx.events.load("t1")) == events
        assert await store.read(lambda tx: tx.events.load("t1", after=1, limit=2)) == events[2:4]
        assert await store.read(lambda tx: tx.events.load("t1", after=4)) == []
        assert await store.read(lambda tx: tx.events.load("unknown")) == []

    @pytest.mark.parametrize(
        ("max_bytes", "after", "count"),
        [(1, -1, 1), (11, -1, 1), (12, -1, 2), (26, -1, 3), (10, 1, 2), (99, -1, 5)],
    )
    async def test_a_page_of_events_ends_with_the_one_that_fills_it(
        self, store: StateStore, max_bytes: int, after: int, count: int
    ) -> None:
        sizes = {"t1": ['"1234567é"', '"123456789012"', "{}", '"12345678"', "{}"], "t2": ["{}"]}
        events = {
            name: [EventRecord(name, n, "E", data) for n, data in enumerate(found)]
            for name, found in sizes.items()
        }
        await store.transact(lambda tx: tx.events.insert([*events["t1"], *events["t2"]]))
        page = await store.read(lambda tx: tx.events.load("t1", after=after, max_bytes=max_bytes))
        assert page == events["t1"][after + 1 : after + 1 + count]

    async def test_the_size_of_an_inbox_counts_what_is_not_consumed(self, store: StateStore) -> None:
        texts = {"t1": ['"abc"', '"é"', '"d"'], "t2": ["{}"], "t3": ["{}"]}
        entries = [
            InboxRecord(name, n + 1, text) for name, each in texts.items() for n, text in enumerate(each)
        ]
        await store.transact(lambda tx: tx.inbox.insert(entries))
        await store.transact(lambda tx: tx.inbox.consume([("t1", 1), ("t2", 1)]))
        sizes = await store.read(lambda tx: tx.inbox.sizes(["t1", "t2", "t4"]))
        assert sizes == {"t1": 7}

    async def test_inboxes_are_read_in_order(self, store: StateStore) -> None:
        entries = [InboxRecord(task_id, seq, f'"{seq}"') for task_id in ("t1", "t2") for seq in range(1, 13)]
        await store.transact(lambda tx: tx.inbox.insert([*reversed(entries), InboxRecord("t3", 1, "{}")]))
        assert await store.read(lambda tx: tx.inbox.load(["t2", "t1", "unknown"])) == entries

    async def test_consumed_entries_are_not_read_again(self, store: StateStore) -> None:
        entries = [InboxRecord(task_id, seq, "{}") for task_id in ("t1", "t2") for seq in (1, 2, 3)]
        await store.transact(lambda tx: tx.inbox.insert(entries))
        consumed = {("t1", 1), ("t1", 3), ("t2", 2), ("t1", 9), ("unknown", 1)}
        await store.transact(lambda tx: tx.inbox.consume(consumed))
        found = await store.read(lambda tx: tx.inbox.load(["t1", "t2"]))
        assert found == [entries[1], entries[3], entries[5]]

    async def test_restored_entries_are_read_again(self, store: StateStore) -> None:
        entries = [InboxRecord(task_id, seq, "{}") for task_id in ("t1", "t2") for seq in (1, 2)]
        await store.transact(lambda tx: tx.inbox.insert(entries))
        await store.transact(lambda tx: tx.inbox.consume([("t1", 1), ("t1", 2), ("t2", 1)]))
        await store.transact(lambda tx: tx.inbox.restore(["t1", "unknown"]))
        assert await store.read(lambda tx: tx.inbox.load(["t1", "t2"])) == [*entries[:2], entries[3]]

    async def test_the_keys_of_an_inbox_are_known_for_good(self, store: StateStore) -> None:
        entries = [
            InboxRecord("t1", 1, "{}", "a"),
            InboxRecord("t1", 2, "{}", "b"),
            InboxRecord("t2", 1, "{}"),
        ]
        await store.transact(lambda tx: tx.inbox.insert([*entries, InboxRecord("t2", 2, "{}", "b")]))
        await store.transact(lambda tx: tx.inbox.consume([("t1", 1)]))
        asked = {("t1", "a"), ("t2", "a"), ("t2", "b"), ("unknown", "b")}
        known = await store.read(lambda tx: tx.inbox.known_keys(asked))
        assert known == {("t1", "a"), ("t2", "b")}
        assert (await store.read(lambda tx: tx.inbox.load(["t1"])))[0] == entries[1]

    async def test_a_key_comes_once_in_an_inbox(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.inbox.insert([InboxRecord("t1", 1, "{}", "a")]))
        with pytest.raises(ConflictError):
            await store.transact(lambda tx: tx.inbox.insert([InboxRecord("t1", 2, "{}", "a")]))

    # -- runs

    async def test_runs_come_back_as_they_were_put(self, store: StateStore) -> None:
        full = RunHeadRecord("t1", "fingerprint", "2.26.1", '{"a": "ä\\u0000😀"}', "state")
        bare = RunHeadRecord("t2", "fingerprint", "2.26.1")
        await store.transact(lambda tx: tx.runs.put([full, bare]))
        assert await store.read(lambda tx: tx.runs.load(["t1", "t2", "unknown"])) == {"t1": full, "t2": bare}

    async def test_what_a_run_does_not_bring_stays(self, store: StateStore) -> None:
        def run(fingerprint: str, version: str, snapshot: str | None, state: str | None) -> RunHeadRecord:
            return RunHeadRecord("t1", fingerprint, version, snapshot, state)

        steps = [
            (run("f1", "1", None, "s1"), run("f1", "1", None, "s1")),
            (run("f1", "1", "snapshot", None), run("f1", "1", "snapshot", "s1")),
            (run("f1", "1", None, "s2"), run("f1", "1", "snapshot", "s2")),
            (run("f1", "1", None, None), run("f1", "1", "snapshot", "s2")),
            (run("f2", "1", None, None), run("f2", "1", "snapshot", "s2")),
            (run("f2", "2", None, None), run("f2", "2", "snapshot", "s2")),
        ]
        for brought, expected in steps:
            await store.transact(lambda tx, run=brought: tx.runs.put([run]))  # type: ignore[misc]
            assert await store.read(lambda tx: tx.runs.load(["t1"])) == {"t1": expected}

    async def test_journals_are_read_in_order(self, store: StateStore) -> None:
        entries = [JournalRecord(task_id, seq, f'"{seq}"') for task_id in ("t1", "t2") for seq in range(12)]
        await store.transact(
            lambda tx: tx.runs.insert_journal([*reversed(entries), JournalRecord("t3", 0, "{}")])
        )
        assert await store.read(lambda tx: tx.runs.load_journal(["t2", "t1", "unknown"])) == entries

    async def test_a_journal_is_trimmed_before_an_entry(self, store: StateStore) -> None:
        entries = [JournalRecord(task_id, seq, "{}") for task_id in ("t1", "t2", "t3") for seq in range(3)]
        await store.transact(lambda tx: tx.runs.insert_journal(entries))
        await store.transact(lambda tx: tx.runs.trim_journal({"t1": 2, "t2": 9, "unknown": 1}))
        assert await store.read(lambda tx: tx.runs.load_journal(["t1", "t2", "t3"])) == [
            entries[2],
            *entries[6:],
        ]

    async def test_deleting_a_run_deletes_its_journal(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.runs.put([RunHeadRecord("t1", "f", "1"), RunHeadRecord("t2", "f", "1")])
            tx.runs.insert_journal([JournalRecord("t1", 0, "{}"), JournalRecord("t2", 0, "{}")])
            tx.runs.delete(["t1", "unknown"])

        await store.transact(work)
        assert set(await store.read(lambda tx: tx.runs.load(["t1", "t2"]))) == {"t2"}
        assert len(await store.read(lambda tx: tx.runs.load_journal(["t1", "t2"]))) == 1
