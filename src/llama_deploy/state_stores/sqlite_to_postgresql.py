"""Copies all rows of an SQLite database that no control plane uses into an empty PostgreSQL database."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from llama_deploy.errors import ConfigError, ConflictError, StoreLockedError
from llama_deploy.state_stores.migrations import SCHEMA_REVISION
from llama_deploy.state_stores.postgresql_errors import DRIVER_ERRORS, raise_translated
from llama_deploy.state_stores.postgresql_opening import Address, Place, make_ready, new_engine
from llama_deploy.state_stores.sql.tables import metadata, tasks
from llama_deploy.state_stores.sqlite_backup import check_store
from llama_deploy.state_stores.sqlite_lock import FileLock

_ROWS: Final = 500
"""How many rows are sent together."""
_CHARACTERS: Final = 4 * 1024 * 1024
"""With how much text they are sent, however few they are."""


async def copy_store(database: Path, uri: str) -> dict[str, int]:
    """Copy a database in one transaction, and return how many rows of each table were copied.

    Args:
        database: The SQLite file. It is not changed.
        uri: The address of the PostgreSQL database. Its tables are created if there are none.

    Raises:
        ConfigError: An address is invalid, a database is not a state store, or they have different schemas.
        ConflictError: The target has rows already, or the numbers of rows differ in the end.
        StoreLockedError: A control plane uses one of them.
        UnavailableError: A database does not answer. Nothing was copied.
    """
    revision = check_store(database, what="the state store")
    if revision != SCHEMA_REVISION:
        raise ConfigError(
            f"{database} has the schema revision {revision}, and this release copies {SCHEMA_REVISION}: run"
            " llamactl db upgrade on it first"
        )
    address = Address(uri)
    lock = FileLock(database)
    try:
        source = sa.create_engine(sa.URL.create("sqlite", database=str(database)), poolclass=sa.NullPool)
        engine = new_engine(address, answer_seconds=None)
        try:
            place = await make_ready(engine, address)
            async with engine.begin() as target:
                return await target.run_sync(
                    partial(_copy_all, source=source, place=place, name=address.name)
                )
        except DRIVER_ERRORS as exc:
            raise_translated(exc, address.name)
        finally:
            await engine.dispose()
    finally:
        lock.release()


def _copy_all(target: sa.Connection, *, source: sa.Engine, place: Place, name: str) -> dict[str, int]:
    target.exec_driver_sql("SET LOCAL statement_timeout TO 0")
    target.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout TO '60s'")
    if not target.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(place.listening_lock))):
        raise StoreLockedError(f"a control plane uses the state store {name}: stop all of them first")
    # Tasks first: triggers may write other tables when they are stored.
    tables = sorted(metadata.sorted_tables, key=lambda table: table is not tasks)
    if taken := [table.name for table in tables if _has_rows(target, table)]:
        raise ConflictError(
            f"the state store {name} has rows in {', '.join(taken)} already, and copying overwrites nothing:"
            " use an empty database or schema"
        )
    with source.connect() as reading:
        reading.exec_driver_sql("BEGIN")
        counts = {table.name: _copy_table(reading, target, table) for table in tables}
    return dict(sorted(counts.items()))


def _copy_table(reading: sa.Connection, target: sa.Connection, table: sa.Table) -> int:
    count = sa.select(sa.func.count()).select_from(table)
    expected = int(reading.scalar(count) or 0)
    if _has_rows(target, table):
        return expected  # triggers have written it
    for rows in _batches(reading, table):
        target.execute(sa.insert(table).inline(), rows)
    copied = int(target.scalar(count) or 0)
    if copied != expected:
        raise ConflictError(
            f"{copied} of {expected} rows of {table.name} were copied; nothing is kept in the target"
        )
    _set_sequence(target, table)
    return copied


def _batches(reading: sa.Connection, table: sa.Table) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    rows = reading.execution_options(yield_per=_ROWS).execute(sa.select(table))
    for row in rows.mappings():
        batch.append(dict(row))
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(batch) >= _ROWS or size >= _CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _set_sequence(target: sa.Connection, table: sa.Table) -> None:
    """Let new rows get greater positions than the copied ones."""
    for column in table.primary_key:
        last = sa.select(sa.func.max(column)).scalar_subquery()
        sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
        if isinstance(column.type, sa.Integer) and target.scalar(sa.select(sequence)) is not None:
            target.execute(sa.select(sa.func.setval(sequence, last)).where(last.is_not(None)))


def _has_rows(connection: sa.Connection, table: sa.Table) -> bool:
    return connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None
