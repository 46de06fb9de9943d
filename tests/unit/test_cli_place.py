"""What `llamactl serve` says about where it stores its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_deploy.cli.place import Place
from llama_deploy.state_stores.store_registry import open_state_store


def place(store: str | None) -> Place:
    return Place(
        data_dir=Path("data"), host="127.0.0.1", port=0, queue_port=0, allow_remote=False, store=store
    )


@pytest.mark.parametrize(
    ("store", "shown"),
    [
        (None, "sqlite:///{cwd}/data/control_plane.db"),
        ("sqlite:///one.db", "sqlite:///{cwd}/one.db"),
        ("sqlite:////srv/one.db", "sqlite:////srv/one.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql://me:hush@host/db?password=hush", "postgresql://host/db"),
    ],
)
def test_the_store_is_shown_so_that_another_process_finds_it(
    store: str | None, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert place(store).public_store_uri == shown.format(cwd=tmp_path)


async def test_the_data_directory_may_contain_characters_of_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "50%41 of #2?"
    folder.mkdir()
    monkeypatch.chdir(folder)
    async with await open_state_store(place(None).store_uri):
        assert (folder / "data" / "control_plane.db").is_file()
    assert place(None).public_store_uri == place(None).store_uri
