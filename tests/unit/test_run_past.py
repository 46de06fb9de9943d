"""What the control plane keeps of what the writes of a run's journal replace."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llama_deploy.control_plane.storage.read_budget import ReadBudget
from llama_deploy.control_plane.storage.reads import Scope
from llama_deploy.control_plane.storage.run_rows import RunRows
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import RunPastRecord
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.types.instance_protocol import JournalWrite, RunHeader
from llama_deploy.types.run_past import MAX_PAST_BYTES, ReplacedJournal


@pytest.fixture
async def store() -> AsyncIterator[StateStore]:
    async with await SQLiteStateStore.connect("sqlite:///:memory:") as store:
        yield store


async def write(store: StateStore, *writes: dict[str, Any]) -> None:
    """Store writes, each in a transaction of its own."""
    header = RunHeader(fingerprint="f", library_version="1")
    for fields in writes:
        sent = JournalWrite(task_id="t1", attempt=1, token="t", first=0, events=[], header=header, **fields)

        def work(tx: StoreTransaction, sent: JournalWrite = sent) -> None:
            rows = RunRows(tx, Scope(), ReadBudget(1024))
            rows.write(sent)
            rows.flush()

        await store.transact(work)


async def past_of(store: StateStore) -> list[RunPastRecord]:
    return await store.read(lambda tx: tx.runs.load_past("t1"))


async def snapshots_of(store: StateStore) -> int | None:
    return (await store.read(lambda tx: tx.runs.load(["t1"])))["t1"].snapshots


ENTRIES = [{"seq": seq, "entry": f"e{seq}", "snapshots": 0} for seq in range(3)]
SNAPSHOT = {"seq": 3, "snapshot": "s1", "snapshots": 0}


async def test_entries_alone_replace_nothing(store: StateStore) -> None:
    await write(store, *ENTRIES)
    assert await past_of(store) == []
    assert await snapshots_of(store) is None


async def test_each_snapshot_keeps_the_journal_before_it(store: StateStore) -> None:
    more = [
        {"seq": 3, "entry": "e3", "snapshots": 1},
        {"seq": 4, "snapshot": "s2", "snapshots": 1, "state": "new", "state_change": "{}"},
    ]
    await write(store, *ENTRIES, SNAPSHOT, *more)
    first, second = await past_of(store)
    same = {"fingerprint": "f", "library_version": "1"}
    assert ReplacedJournal.unpack(first.replaced or b"") == ReplacedJournal(
        first=0, entries=["e0", "e1", "e2"], **same
    )
    kept = ReplacedJournal(first=3, entries=["e3"], snapshot="s1", **same)
    assert ReplacedJournal.unpack(second.replaced or b"") == kept
    assert [(each.seq, each.snapshots, each.state_change) for each in (first, second)] == [
        (3, 0, None),
        (4, 1, "{}"),
    ]
    assert await snapshots_of(store) == 2


async def test_a_snapshot_that_is_written_again_does_not_replace_itself(store: StateStore) -> None:
    """Its answer was lost."""
    snapshot = {**SNAPSHOT, "state": "new", "state_change": "{}"}
    await write(store, *ENTRIES, snapshot)
    (before,) = await past_of(store)
    await write(store, snapshot)
    (after,) = await past_of(store)
    assert after._replace(size=before.size) == before
    assert await snapshots_of(store) == 1


async def test_a_run_that_is_parked_at_its_beginning_replaces_nothing(store: StateStore) -> None:
    await write(store, {"seq": 0, "snapshot": "s1", "snapshots": 0})
    assert await past_of(store) == []
    assert await snapshots_of(store) == 1


async def test_a_large_state_does_not_hide_what_a_snapshot_replaces(store: StateStore) -> None:
    """It is not part of the journal."""
    state = {"state": "x" * 3 * 1024 * 1024}
    await write(store, {**ENTRIES[0], **state}, *ENTRIES[1:], SNAPSHOT)
    (replaced,) = await past_of(store)
    assert ReplacedJournal.unpack(replaced.replaced or b"").entries == ["e0", "e1", "e2"]


async def test_a_journal_that_is_too_large_is_not_kept(store: StateStore) -> None:
    """Reading it would take long, although it could be compressed."""
    await write(store, {**ENTRIES[0], "entry": "x" * 3 * 1024 * 1024}, {**SNAPSHOT, "seq": 1})
    assert await past_of(store) == []
    assert await snapshots_of(store) == 1


async def test_snapshots_of_older_instances_are_counted_but_replace_nothing(store: StateStore) -> None:
    """They do not say where they are. A point before them must not be taken for one after them."""
    older = {"seq": 3, "snapshot": "s1", "state": "new"}
    await write(store, *ENTRIES, older)
    assert await snapshots_of(store) == 1
    await write(store, {"seq": 3, "snapshot": "s2", "snapshots": 1})
    assert await snapshots_of(store) == 2
    kept = await past_of(store)
    await write(store, {"seq": 3, "snapshot": "s3"})
    assert await snapshots_of(store) == 3
    assert await past_of(store) == kept


async def test_two_snapshots_of_older_instances_in_one_transaction_are_counted(store: StateStore) -> None:
    header = RunHeader(fingerprint="f", library_version="1")
    sent = JournalWrite(
        task_id="t1", attempt=1, token="t", first=0, events=[], header=header, seq=0, snapshot="s1"
    )

    def work(tx: StoreTransaction) -> None:
        rows = RunRows(tx, Scope(), ReadBudget(1024))
        rows.write(sent)
        rows.write(sent.model_copy(update={"snapshot": "s2"}))
        rows.flush()

    await store.transact(work)
    assert await snapshots_of(store) == 2


async def test_what_is_too_large_is_not_kept(store: StateStore) -> None:
    large = {"state": "new", "state_change": "x" * (MAX_PAST_BYTES + 1)}
    await write(store, {**ENTRIES[0], **large}, {**ENTRIES[1], "state": "newer", "state_change": "{}"})
    assert [(each.seq, each.snapshots) for each in await past_of(store)] == [(1, 0)]


@pytest.mark.parametrize("size", [1024, 10 * 1024])
@pytest.mark.parametrize("every", [1, 2, 3, 4, 16])
async def test_what_is_kept_is_measured_often_whichever_writes_change_the_state(
    store: StateStore, every: int, size: int
) -> None:
    most = MAX_PAST_BYTES * 4 // 3
    for seq in range(3, every * 2 * most // size, every):
        fields = {"seq": seq, "entry": "e", "snapshots": 0, "state": "s", "state_change": "x" * size}
        await write(store, fields)
        assert sum(each.size for each in await past_of(store)) <= most


def test_a_replaced_journal_is_packed() -> None:
    replaced = ReplacedJournal(
        first=3, entries=["x" * 1000] * 9, fingerprint="é", library_version="1", needs="{}"
    )
    assert ReplacedJournal.unpack(replaced.pack()) == replaced
    assert len(replaced.pack()) < 200


@pytest.mark.parametrize("packed", [b"", b"not compressed", zlib.compress(b"{}")])
def test_what_is_not_a_packed_journal_is_an_error(packed: bytes) -> None:
    with pytest.raises(ValueError, match=r"(?i)journal"):
        ReplacedJournal.unpack(packed)
