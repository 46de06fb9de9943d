"""The store of a hosted run is the library's own, whatever it takes to make it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel
from workflows.context import JsonSerializer
from workflows.context.state_store import DictState, InMemoryStateStore

from llama_deploy.workflow_library.run_store import IS_KNOWN, RunStore


class Counted(BaseModel):
    count: int = 0


def test_the_installed_version_is_known() -> None:
    assert IS_KNOWN


@pytest.mark.parametrize("state", [DictState(name="Ada"), Counted(count=3)])
def test_it_is_the_store_that_the_library_makes(state: BaseModel) -> None:
    mine, its = RunStore(state), InMemoryStateStore(state)
    assert {name: type(value) for name, value in vars(mine).items()} == {
        name: type(value) for name, value in vars(its).items()
    }
    assert mine.to_dict(JsonSerializer()) == its.to_dict(JsonSerializer())


async def test_stores_share_no_state() -> None:
    first, second = RunStore(Counted()), RunStore(Counted())
    async with first.edit_state() as state:
        state.count += 1
        assert (await first.get_state()).count == 0, "not before the end of the block"
    assert (await first.get_state()).count == 1
    assert (await second.get_state()).count == 0


async def test_a_stored_state_is_read_into_one() -> None:
    payload = InMemoryStateStore(DictState(name="Ada")).to_dict(JsonSerializer())
    store = RunStore.from_dict(payload, JsonSerializer())
    assert isinstance(store, RunStore)
    assert await store.get("name") == "Ada"
