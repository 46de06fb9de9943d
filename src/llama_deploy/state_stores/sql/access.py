"""The ways in which repositories reach the database."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from llama_deploy.state_stores.sql.direct import DirectConnection
from llama_deploy.state_stores.sql.queries import Changes, Connection, Inserts, Query, R, Update

T = TypeVar("T")

IDS: Final = "ids"
"""The name of the parameter of all statements that take ids."""
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

    def rows(self, query: Query, parameters: Mapping[str, object]) -> Iterable[Sequence[Any]]:
        """Return the rows of a query, to be read once."""
        select = query.locking if self._lock_rows else query.plain
        return self.connection.execute(select, dict(parameters))

    def scan(self, query: Query, parameters: Mapping[str, object]) -> Generator[Sequence[Any]] | None:
        """Return the rows of a query, each read when it is asked for; the caller closes them.

        None: the driver reads all rows at once.
        """
        if isinstance(self.connection, DirectConnection):
            return self.connection.scan(query.plain, parameters)
        return None

    def rows_by_ids(
        self, query: Query, ids: Collection[str], parameters: Mapping[str, object] = MappingProxyType({})
    ) -> list[Sequence[Any]]:
        """Return the rows of a query that takes ids, and perhaps further parameters."""
        return [row for chunk in chunks(ids) for row in self.rows(query, {**parameters, IDS: pad(chunk)})]

    def write(self, statement: sa.Insert | sa.Update | sa.Delete, rows: list[dict[str, object]]) -> None:
        """Execute a statement once for each row."""
        if rows:
            self.connection.execute(statement, rows)

    def update(self, update: Update[R], records: Iterable[R]) -> None:
        """Overwrite fields of the rows that have the keys of these records."""
        self.write(update.statement, update.rows(records))

    def insert(self, inserts: Inserts[R], records: Iterable[R]) -> None:
        """Store new rows, in this order."""
        for statement, rows in inserts.statements(records):
            self.write(statement, rows)

    def change(self, changes: Changes[R], pairs: Iterable[tuple[R, R]]) -> None:
        """Overwrite the fields in which records differ; the first of a pair is stored."""
        for statement, rows in changes.statements(pairs):
            self.write(statement, rows)

    def put(self, statements: Mapping[str, sa.Insert], rows: list[dict[str, object]]) -> None:
        """Execute the statement of this database's dialect once for each row."""
        self.write(statements[self.connection.dialect.name], rows)

    def execute_for(self, statements: Sequence[sa.Delete | sa.Update], ids: Collection[str]) -> None:
        """Execute statements that take ids, in order."""
        for chunk in chunks(ids):
            for statement in statements:
                self.connection.execute(statement, {IDS: pad(chunk)})


class SQLRepository:
    """Rows of one kind.

    Args:
        access: Reaches them.
    """

    def __init__(self, access: SQLAccess) -> None:
        self._access = access


def chunks(items: Collection[T], size: int = _IDS_PER_STATEMENT) -> Iterator[list[T]]:
    """Yield the items, each once, in lists of at most `size`."""
    unique = list(dict.fromkeys(items))
    for start in range(0, len(unique), size):
        yield unique[start : start + size]


def pad(values: Collection[T]) -> list[T]:
    """Return the values, the last of them repeated until their number is a power of two.

    There are few such numbers, and so few texts of a statement that takes them all.
    """
    padded = list(values)
    missing = (1 << (len(padded) - 1).bit_length()) - len(padded)
    return padded + padded[-1:] * missing


def upserts(table: sa.Table, *, skips_none: bool = False) -> dict[str, sa.Insert]:
    """Return "insert, or overwrite the row with that key" by dialect: the SQL standard does not have it.

    Args:
        table: The table.
        skips_none: Whether a None leaves the stored value, and a row without a change is not written.
    """
    statements: dict[str, sa.Insert] = {}
    others = [column for column in table.c if not column.primary_key]
    for dialect in (sqlite, postgresql):
        insert = dialect.insert(table)
        pairs = [(column, insert.excluded[column.name]) for column in others]
        unless_none = {
            old.name: sa.func.coalesce(value, old) for old, value in pairs if skips_none and old.nullable
        }
        changes = (value.is_not(None) if old.nullable else value != old for old, value in pairs)
        statements[dialect.dialect.name] = insert.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={old.name: value for old, value in pairs} | unless_none,
            where=sa.or_(*changes) if skips_none else None,
        )
    return statements
