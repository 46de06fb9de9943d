"""No query of questions reads more than it has to: each uses an index."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.records import NOW
from llama_deploy.types.owners import Owner
from llama_deploy.types.questions import QuestionState

FILTERS = [
    {name: value for name, value in zip(("service_name", "assignee", "tag"), values, strict=True) if value}
    for values in itertools.product(("a", None), repeat=3)
]


def page_with(filters: dict[str, str], owner: Owner | None) -> Callable[[StoreTransaction], Any]:
    def read(tx: StoreTransaction) -> Any:
        return tx.questions.page(
            owner=owner,
            service_name=filters.get("service_name"),
            assignee=filters.get("assignee"),
            tag=filters.get("tag"),
            after=(NOW, "q"),
        )

    return read


QUERIES: dict[str, Callable[[StoreTransaction], Any]] = {
    **{
        f"page {' '.join(filters) or 'of all'} for {owner}": page_with(filters, owner)
        for filters in FILTERS
        for owner in (None, Owner(), Owner("acme"), Owner("acme", "zoe"), Owner("", "zoe"))
    },
    "load": lambda tx: tx.questions.load(["a", "b"]),
    "heads": lambda tx: tx.questions.heads(["a", "b"]),
    "open heads": lambda tx: tx.questions.open_heads(["a", "b"]),
    "open ids": lambda tx: tx.questions.open_ids(["a", "b"]),
    "of a task": lambda tx: tx.questions.of_task("a"),
    "due": lambda tx: tx.questions.due(limit=1),
    "due before": lambda tx: tx.questions.due(due_before=NOW + timedelta(days=1)),
    "close": lambda tx: tx.questions.close(["a"], QuestionState.WITHDRAWN, at=NOW),
    "end": lambda tx: tx.questions.end(["a"], at=NOW),
    "assign": lambda tx: tx.questions.assign("a", "b"),
    "callback": lambda tx: tx.questions.find_callback("a"),
    "delete": lambda tx: tx.sessions.delete(["a"]),
}


@pytest.mark.parametrize("name", QUERIES)
async def test_every_query_uses_an_index(tmp_path: Path, name: str) -> None:
    executed: list[tuple[str, Any]] = []

    def work(tx: StoreTransaction) -> list[str]:
        connection: Any = vars(tx)["_connection"]
        driver = connection._driver
        driver.set_trace_callback(lambda text: executed.append((text, None)))
        try:
            QUERIES[name](tx)
        finally:
            driver.set_trace_callback(None)
        plans: list[str] = []
        for text, _ in executed:
            plans += [row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {text}")]
        return plans

    async with await SQLiteStateStore.connect(f"sqlite:///{tmp_path}/store.db") as store:
        plans = await store.transact(work)
    assert plans
    assert not [each for each in plans if each.startswith("SCAN") or "TEMP B-TREE" in each], plans
