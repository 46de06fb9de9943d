"""What belongs to a task: its events, its inbox, its run."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import pytest

from llama_deploy.errors import ConflictError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import (
    RUN_FORMAT,
    EventRecord,
    InboxRecord,
    JournalRecord,
    JournalStartRecord,
    RunCopy,
    RunHeadRecord,
    RunPastRecord,
    RunSizeRecord,
)
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

    async def test_the_size_of_a_run_counts_its_head_and_its_journal(self, store: StateStore) -> None:
        heads = [
            RunHeadRecord("t1", "f", "1", snapshot="é" * 10, state="123", needs="{}", snapshots=2),
            RunHeadRecord("t2", "f", "1", format=7),
        ]
        entries = [JournalRecord("t1", 0, "12"), JournalRecord("t1", 1, "é"), JournalRecord("t3", 0, "lost")]

        def work(tx: StoreTransaction) -> None:
            tx.runs.put(heads)
            tx.runs.insert_journal(entries)

        await store.transact(work)
        sizes = await store.read(lambda tx: tx.runs.sizes(["t1", "t2", "unknown"]))
        assert sizes == {"t1": RunSizeRecord(26, 3, RUN_FORMAT, 2), "t2": RunSizeRecord(0, 0, 7)}
        assert sizes["t1"].size == 29

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
        full = RunHeadRecord(
            "t1", "fingerprint", "2.26.1", '{"a": "ä\\u0000😀"}', "state", needs="{}", origin="o"
        )
        bare = RunHeadRecord("t2", "fingerprint", "2.26.1")
        await store.transact(lambda tx: tx.runs.put([full, bare]))
        assert await store.read(lambda tx: tx.runs.load(["t1", "t2", "unknown"])) == {"t1": full, "t2": bare}

    async def test_what_a_journal_begins_with_is_read_without_the_state(self, store: StateStore) -> None:
        heads = [
            RunHeadRecord("t1", "f1", "1", '{"a": "ä"}', "state", needs="{}", snapshots=3),
            RunHeadRecord("t2", "f2", "2"),
        ]
        await store.transact(lambda tx: tx.runs.put(heads))
        starts = await store.read(lambda tx: tx.runs.load_journal_starts(["t1", "t2", "unknown"]))
        assert starts == {
            "t1": JournalStartRecord("f1", "1", '{"a": "ä"}', "{}"),
            "t2": JournalStartRecord("f2", "2", None, None),
        }

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

    # -- copies

    async def test_a_copied_run_has_all_that_the_first_one_has(self, store: StateStore) -> None:
        head = RunHeadRecord("t1", "fingerprint", "2.26.1", '{"a": "ä"}', "state", needs="{}")
        entries = [JournalRecord("t1", seq, f'"{seq}"') for seq in (3, 4)]

        def work(tx: StoreTransaction) -> None:
            tx.runs.put([head, RunHeadRecord("t2", "f", "1")])
            tx.runs.insert_journal([*entries, JournalRecord("t2", 0, "{}")])

        await store.transact(work)
        copies = [RunCopy("t1", "t9", "from t1"), RunCopy("unknown", "t8", "from nowhere")]
        await store.transact(lambda tx: tx.runs.copy(copies))
        heads = await store.read(lambda tx: tx.runs.load(["t1", "t8", "t9"]))
        assert heads == {"t1": head, "t9": head._replace(task_id="t9", origin="from t1")}
        journal = await store.read(lambda tx: tx.runs.load_journal(["t1", "t8", "t9"]))
        assert journal == [*entries, *(entry._replace(task_id="t9") for entry in entries)]

    async def test_a_copied_run_and_the_first_one_change_each_for_itself(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.runs.put([RunHeadRecord("t1", "f", "1")])
            tx.runs.insert_journal([JournalRecord("t1", seq, "{}") for seq in range(2)])
            tx.runs.copy([RunCopy("t1", "t2", "o"), RunCopy("t1", "t3", "o")])

        await store.transact(work)
        await store.transact(lambda tx: tx.runs.delete(["t1"]))
        await store.transact(lambda tx: tx.runs.trim_journal({"t2": 1}))
        await store.transact(lambda tx: tx.runs.put([RunHeadRecord("t2", "f", "2", "snapshot")]))
        heads = await store.read(lambda tx: tx.runs.load(["t1", "t2", "t3"]))
        assert heads == {
            "t2": RunHeadRecord("t2", "f", "2", "snapshot", origin="o"),
            "t3": RunHeadRecord("t3", "f", "1", origin="o"),
        }
        journal = await store.read(lambda tx: tx.runs.load_journal(["t1", "t2", "t3"]))
        assert [(entry.task_id, entry.seq) for entry in journal] == [("t2", 1), ("t3", 0), ("t3", 1)]

    async def test_in_a_copied_inbox_consumed_entries_stay_consumed(self, store: StateStore) -> None:
        entries = [InboxRecord("t1", seq, f'"{seq}"', f"key {seq}") for seq in (1, 2, 3)]
        await store.transact(lambda tx: tx.inbox.insert([*entries, InboxRecord("t2", 1, "{}")]))
        await store.transact(lambda tx: tx.inbox.consume([("t1", 2)]))
        await store.transact(lambda tx: tx.inbox.copy({"t1": "t9", "unknown": "t8"}))
        found = await store.read(lambda tx: tx.inbox.load(["t8", "t9"]))
        assert found == [entries[0]._replace(task_id="t9"), entries[2]._replace(task_id="t9")]
        known = await store.read(lambda tx: tx.inbox.known_keys({("t9", "key 2"), ("t8", "key 2")}))
        assert known == {("t9", "key 2")}
        history = await store.read(lambda tx: tx.inbox.history("t9"))
        copied = [entry._replace(task_id="t9") for entry in entries]
        assert history == [(copied[0], False), (copied[1], True), (copied[2], False)]

    async def test_what_writes_have_replaced_is_read_in_their_order(self, store: StateStore) -> None:
        records = [
            RunPastRecord("t1", 0, 0, 7, '{"change": 1}'),
            RunPastRecord("t1", 2, 0, 9, replaced=b"journal 1"),
            RunPastRecord("t1", 2, 1, 3, '{"change": 2}', b"journal 2"),
            RunPastRecord("t1", 12, 1, 3, '{"change": 3}'),
        ]
        other = RunPastRecord("t2", 0, 0, 1, "{}")
        await store.transact(lambda tx: tx.runs.put_past([*reversed(records), other]))
        assert await store.read(lambda tx: tx.runs.load_past("t1")) == records
        assert await store.read(lambda tx: tx.runs.load_past("unknown")) == []
        again = records[1]._replace(size=10, state_change="{}")
        await store.transact(lambda tx: tx.runs.put_past([again]))
        assert (await store.read(lambda tx: tx.runs.load_past("t1")))[1] == again
        await store.transact(lambda tx: tx.runs.delete(["t1"]))
        assert await store.read(lambda tx: (tx.runs.load_past("t1"), tx.runs.load_past("t2"))) == (
            [],
            [other],
        )

    async def test_of_what_was_replaced_the_last_of_a_size_is_kept(self, store: StateStore) -> None:
        records = {
            task_id: [RunPastRecord(task_id, n // 2, (n + 1) // 2, 10, "{}") for n in range(6)]
            for task_id in ("t1", "t2", "t3")
        }
        await store.transact(lambda tx: tx.runs.put_past([row for each in records.values() for row in each]))
        await store.transact(lambda tx: tx.runs.trim_past(["t1", "t3", "unknown"], max_bytes=30))
        kept = await store.read(lambda tx: [tx.runs.load_past(task_id) for task_id in records])
        assert kept == [records["t1"][3:], records["t2"], records["t3"][3:]]
        await store.transact(lambda tx: tx.runs.trim_past(["t1"], max_bytes=9))
        assert await store.read(lambda tx: tx.runs.load_past("t1")) == []

    async def test_the_first_entries_of_a_journal_are_copied(self, store: StateStore) -> None:
        entries = [JournalRecord("t1", seq, f"entry {seq}") for seq in range(3, 8)]
        await store.transact(lambda tx: tx.runs.insert_journal(entries))
        await store.transact(lambda tx: tx.runs.copy_entries("t1", "t2", length=6))
        copied = await store.read(lambda tx: tx.runs.load_journal(["t2"]))
        assert copied == [entry._replace(task_id="t2") for entry in entries[:3]]
        assert await store.read(lambda tx: [tx.runs.count_entries(name) for name in ("t1", "t2", "t3")]) == [
            5,
            3,
            0,
        ]
