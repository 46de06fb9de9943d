"""Queries, row mappers and the connection that repositories run statements on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import sqlalchemy as sa

R = TypeVar("R", bound=NamedTuple)

KEY: Final = "key"
"""The name of the parameter that says which row is updated; the columns keep their own names."""


class Mapper(Generic[R]):
    """Turns records into rows and back; the fields of the record are columns of the table."""

    def __init__(self, record_type: type[R], table: sa.Table) -> None:
        self._make = record_type._make
        self.table = table
        self.names: tuple[str, ...] = record_type._fields
        """The fields, in their order."""
        self.columns = [table.c[name] for name in self.names]
        """The columns, in the order of the fields."""

    def where(self, *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
        """Return the query of the rows that fulfil these conditions."""
        return sa.select(*self.columns).where(*conditions)

    def record(self, row: Sequence[object]) -> R:
        """Return the record of a row that has these columns."""
        return self._make(row)

    def rows(self, records: Sequence[R]) -> list[dict[str, object]]:
        """Return the parameters that store records."""
        return [dict(zip(self.names, record, strict=True)) for record in records]


class Update(Generic[R]):
    """Overwrites some fields of rows that are found by their key.

    Args:
        mapper: Of the rows.
        key: The field that is the key.
        fields: The fields that are overwritten.
    """

    def __init__(self, mapper: Mapper[R], *, key: str, fields: Sequence[str]) -> None:
        row = mapper.table.c[key] == sa.bindparam(KEY)
        changes: dict[str, sa.BindParameter[Any]] = {name: sa.bindparam(name) for name in fields}
        self.statement = sa.update(mapper.table).where(row).values(changes)
        self._names = (KEY, *fields)
        self._values = itemgetter(*(mapper.names.index(name) for name in (key, *fields)))

    def rows(self, records: Iterable[R]) -> list[dict[str, object]]:
        """Return the parameters that store these fields of records."""
        return [dict(zip(self._names, self._values(record), strict=True)) for record in records]


@dataclass(frozen=True, slots=True)
class Query:
    """A select, and the same select that locks its rows until the transaction ends.

    Databases with one writer at a time, such as SQLite, need no such locks.
    """

    plain: sa.Select[Any]
    locking: sa.Select[Any]

    @classmethod
    def of(cls, select: sa.Select[Any], *, in_order_of: sa.Column[Any] | None = None) -> Query:
        """Return a query whose rows are locked: no other transaction can lock, change or delete them.

        Args:
            select: The query.
            in_order_of: The order in which to lock. Transactions that lock in the same order cannot deadlock.
                None: the order of the query.
        """
        ordered = select if in_order_of is None else select.order_by(in_order_of)
        return cls(plain=select, locking=ordered.with_for_update())

    @classmethod
    def unlocked(cls, select: sa.Select[Any]) -> Query:
        """Return a query of rows that belong to a task, which the lock of its session covers."""
        return cls(plain=select, locking=select)

    @classmethod
    def kept(cls, select: sa.Select[Any]) -> Query:
        """Return a query whose rows other transactions may read and change, but not delete."""
        return cls(plain=select, locking=select.with_for_update(read=True, key_share=True))


class Connection(Protocol):
    """What a transaction needs of a connection."""

    @property
    def dialect(self) -> sa.Dialect:
        """In which the statements are written."""
        ...

    def execute(self, statement: sa.Executable, parameters: Any, /) -> Iterable[Sequence[Any]]:
        """Execute a statement, once for each of several sets of parameters, and return its rows."""
        ...
