"""A second control plane is kept away from an SQLite file, whatever happens to the lock file."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from llama_deploy.errors import StoreLockedError
from llama_deploy.state_stores.sqlite import SQLiteStateStore

OPEN = """
import asyncio, sys
from llama_deploy.errors import StoreLockedError
from llama_deploy.state_stores.sqlite import SQLiteStateStore
try:
    asyncio.run(SQLiteStateStore.connect(sys.argv[1]))
except StoreLockedError:
    print("locked")
"""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStateStore]:
    async with await SQLiteStateStore.connect(f"sqlite:///{tmp_path}/state.db") as store:
        yield store


def delete(lock: Path) -> None:
    lock.unlink()


def replace(lock: Path) -> None:
    lock.unlink()
    lock.touch()


def link_to_another_file(lock: Path) -> None:
    lock.unlink()
    lock.symlink_to(lock.with_name("precious"))


def link_from_another_file(lock: Path) -> None:
    lock.unlink()
    lock.hardlink_to(lock.with_name("precious"))


FAULTS = [delete, replace, link_to_another_file, link_from_another_file]


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_lock_holds_whatever_happens_to_its_file(
    store: SQLiteStateStore, tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    (tmp_path / "precious").write_text("keep me")
    fault(tmp_path / "state.db.lock")
    with pytest.raises(StoreLockedError, match=r"state\.db"):
        await SQLiteStateStore.connect(f"sqlite:///{tmp_path}/state.db")
    await store.check_writable()
    assert (tmp_path / "precious").read_text() == "keep me"


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_lock_file_that_is_not_ours_is_replaced(
    tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    (tmp_path / "precious").write_text("keep me")
    lock = tmp_path / "state.db.lock"
    lock.touch()
    fault(lock)
    async with await SQLiteStateStore.connect(f"sqlite:///{tmp_path}/state.db"):
        assert lock.read_text() == str(os.getpid())
        assert not lock.is_symlink()
    assert (tmp_path / "precious").read_text() == "keep me"


async def test_another_process_is_kept_away_too_and_takes_no_locks_from_the_first(
    store: SQLiteStateStore, tmp_path: Path
) -> None:
    (tmp_path / "state.db.lock").unlink()
    (tmp_path / "other.db").hardlink_to(tmp_path / "state.db")
    for name in ("state.db", "other.db"):
        command = [sys.executable, "-c", OPEN, f"sqlite:///{tmp_path}/{name}"]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout == "locked\n"
    await store.check_writable()


async def test_a_store_that_was_closed_can_be_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        async with await SQLiteStateStore.connect(f"sqlite:///{tmp_path}/state.db") as store:
            await store.check_writable()
