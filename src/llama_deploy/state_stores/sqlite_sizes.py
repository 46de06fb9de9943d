"""How large an SQLite file and its tables are."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from llama_deploy.errors import UnavailableError
from llama_deploy.state_stores.base import StoreSizes, StoreTableSize
from llama_deploy.state_stores.sql.tables import metadata

_QUICK_BYTES: Final = 32 * 1024 * 1024
"""Up to this size, all of the file is measured: it takes less than a tenth of a second."""


def measure(path: Path, *, exact: bool) -> StoreSizes:
    """Return how large a database and its tables are, over a connection of its own that only reads.

    Args:
        path: The file, which exists. A control plane may be using it.
        exact: Whether the tables of a large file are measured too, for which all of it is read.

    Raises:
        UnavailableError: The file cannot be read.
    """
    try:
        with closing(
            sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
        ) as connection:
            connection.execute("BEGIN")
            page_size, pages, free = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_size", "page_count", "freelist_count")
            )
            is_measured = exact or pages * page_size <= _QUICK_BYTES
            tables = (
                _tables(connection)
                if is_measured
                else [StoreTableSize(name, None, None) for name in metadata.tables]
            )
    except sqlite3.Error as exc:
        raise UnavailableError(f"the state store {path} cannot be measured: {exc}") from exc
    log = _size_of(path.with_name(path.name + "-wal"))
    return StoreSizes(
        "sqlite",
        total_bytes=_size_of(path) + log,
        free_bytes=free * page_size,
        log_bytes=log,
        tables=sorted(tables, key=lambda table: (-(table.bytes or 0), table.name)),
    )


def _tables(connection: sqlite3.Connection) -> list[StoreTableSize]:
    owners = {name: table for name, table in connection.execute("SELECT name, tbl_name FROM sqlite_schema")}  # noqa: C416
    sizes: dict[str, int] = {}
    try:
        for name, size in connection.execute("SELECT name, pgsize FROM dbstat WHERE aggregate = TRUE"):
            owner = owners.get(name, name)
            sizes[owner] = sizes.get(owner, 0) + size
    except sqlite3.OperationalError:
        sizes.clear()  # this build of SQLite does not measure tables
    return [
        StoreTableSize(name, _count(connection, name), sizes.get(name))
        for name in metadata.tables
        if name in owners
    ]


def _count(connection: sqlite3.Connection, table: str) -> int:
    ((count,),) = connection.execute(f'SELECT count(*) FROM "{table}"').fetchall()  # noqa: S608 - a table of ours
    return int(count)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
