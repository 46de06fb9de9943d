"""Lists end earlier if their rows are large, and clients read on."""

from __future__ import annotations

import pytest

from llama_deploy import Client
from llama_deploy.control_plane import ControlPlaneServer
from llama_deploy.control_plane.storage import pages
from llama_deploy.errors import NotFoundError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.large_values import DEFERRED_BYTES
from llama_deploy.testing.records import a_session, a_task
from llama_deploy.types.owners import THE_DEFAULT_TENANT

LARGE = DEFERRED_BYTES * 2
COUNT = 7


@pytest.fixture
async def stored(store: StateStore) -> None:
    """Sessions with large and small states, and one with large and small tasks."""
    texts = [f'{{"n": {n}, "text": "{"x" * (LARGE if n % 2 else 10)}"}}' for n in range(COUNT)]

    def insert(tx: StoreTransaction) -> None:
        tx.sessions.insert([a_session(f"s{n}")._replace(state=text) for n, text in enumerate(texts)])
        # Their ids are not in the order in which they were accepted.
        tx.tasks.insert([a_task(f"t{9 - n}", session_id="s0", input=text) for n, text in enumerate(texts)])

    await store.transact(insert)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("page_bytes", [1, LARGE + 1000, 100 * LARGE])
async def test_clients_list_all_sessions_and_tasks(
    server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch, page_bytes: int
) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", page_bytes)
    monkeypatch.setattr(pages, "_CHUNK", 2)
    async with Client(server.config.url) as client:
        definitions = await client.core.sessions.definitions()
        assert [each.session_id for each in definitions] == [f"s{n}" for n in range(COUNT)]
        assert [each.state["n"] for each in definitions] == [*range(COUNT)]
        assert definitions[0].task_ids == [f"t{9 - n}" for n in range(COUNT)]
        assert {tuple(each.task_ids) for each in definitions[1:]} == {()}
        tasks = await (await client.core.sessions.get("s0")).get_tasks()
        assert [task.task_id for task in tasks] == [f"t{9 - n}" for n in range(COUNT)]
        assert [f'"n": {n}' in task.input for n, task in enumerate(tasks)] == [True] * COUNT


@pytest.mark.usefixtures("stored")
async def test_a_page_ends_with_the_row_that_fills_it(
    server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", LARGE)
    sessions = server.plane.sessions
    assert [*await sessions.all(THE_DEFAULT_TENANT)] == ["s0", "s1"]
    assert [*await sessions.all(THE_DEFAULT_TENANT, after="s1", limit=1)] == ["s2"]
    assert [*await sessions.all(THE_DEFAULT_TENANT, after="s6")] == []
    assert [task.task_id for task in await sessions.tasks("s0")] == ["t9", "t8"]
    assert [task.task_id for task in await sessions.tasks("s0", after="t8", limit=1)] == ["t7"]
    assert await sessions.tasks("s0", after="t3") == []
    with pytest.raises(NotFoundError):
        await sessions.tasks("s0", after="unknown")
    with pytest.raises(NotFoundError):
        await sessions.tasks("unknown")
