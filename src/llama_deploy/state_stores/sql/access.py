"""The ways in which repositories reach the database."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from llama_deploy.state_stores.sql.queries import Connection, Mapper, Query, R

T = TypeVar("T")

IDS: Final = "ids"
"""The name of the parameter of all statements that take ids."""
KEY: Final = "key"
"""The name of the parameter that says which row is updated; the columns keep their own names."""
ids: Final[sa.BindParameter[str]] = sa.bindparam(IDS, expanding=True)
limit: Final[sa.BindParameter[int]] = sa.bindparam("limit", type_=sa.Integer)

_IDS_PER_STATEMENT: Final = 500
"""Databases limit the parameters of a statement: SQLite's smallest usual limit is 999."""


class SQLAccess:
    """Runs statements in the transaction that is open on a connection.

    Args:
        connection: Used synchronously. Its transaction is ended by the code that opened it.
        lock_rows: Whether rows that are read stay locked until then. False for transactions that only read,
            and for databases with one writer at a time.
    """

    def __init__(self, connection: Connection, *, lock_rows: bool) -> None:
        self.connection = connection
        self._lock_rows = lock_rows

    def rows(self, query: Query, parameters: Mapping[str, object]) -> Sequence[Sequence[Any]]:
        """Return the rows of a query."""
        select = query.locking if self._lock_rows else query.plain
        return self.connection.execute(select, dict(parameters)).all()

    def rows_by_ids(self, query: Query, ids: Collection[str]) -> list[Sequence[Any]]:
        """Return the rows of a query that takes ids."""
        return [row for chunk in chunks(ids) for row in self.rows(query, {IDS: chunk})]

    def write(self, statement: sa.Insert | sa.Update | sa.Delete, rows: list[dict[str, object]]) -> None:
        """Execute a statement once for each row."""
        if rows:
            self.connection.execute(statement, rows)

    def put(self, statements: Mapping[str, sa.Insert], rows: list[dict[str, object]]) -> None:
        """Execute the statement of this database's dialect once for each row."""
        self.write(statements[self.connection.dialect.name], rows)

    def delete(self, statements: Sequence[sa.Delete], ids: Collection[str]) -> None:
        """Execute statements that take ids, in order."""
        for chunk in chunks(ids):
            for statement in statements:
                self.connection.execute(statement, {IDS: chunk})


def chunks(items: Collection[T], size: int = _IDS_PER_STATEMENT) -> Iterator[list[T]]:
    """Yield the items, each once, in lists of at most `size`."""
    unique = list(dict.fromkeys(items))
    for start in range(0, len(unique), size):
        yield unique[start : start + size]


def update(table: sa.Table, mapper: Mapper[R], *, key: str, fixed: Collection[str]) -> sa.Update:
    """Return the update of a row by its `key` that overwrites every field but the `fixed` ones."""
    changing: dict[str, sa.BindParameter[object]] = {
        name: sa.bindparam(name) for name in mapper.names if name != key and name not in fixed
    }
    return sa.update(table).where(table.c[key] == sa.bindparam(KEY)).values(changing)


def upserts(table: sa.Table) -> dict[str, sa.Insert]:
    """Return "insert, or overwrite the row with that key" by dialect: the SQL standard does not have it."""
    statements: dict[str, sa.Insert] = {}
    for dialect in (sqlite, postgresql):
        insert = dialect.insert(table)
        replaced = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
        statements[dialect.dialect.name] = insert.on_conflict_do_update(
            index_elements=list(table.primary_key), set_=replaced
        )
    return statements
