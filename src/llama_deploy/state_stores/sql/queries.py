"""Queries, row mappers and the connection that repositories run statements on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress, groupby, repeat
from operator import is_not, itemgetter, ne
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import sqlalchemy as sa

from llama_deploy.state_stores.sql.sizes import DeferrableText, lean

R = TypeVar("R", bound=NamedTuple)

KEY: Final = "key"
"""The name of the parameter that says which row is updated; the columns keep their own names."""
MAX_STATEMENTS: Final = 64
"""How many combinations of fields have statements of their own, which drivers keep prepared."""


class Mapper(Generic[R]):
    """Turns records into rows and back; the fields of the record are columns of the table."""

    def __init__(self, record_type: type[R], table: sa.Table, *, large: Collection[str] = ()) -> None:
        self._make = record_type._make
        self.table = table
        self.names: tuple[str, ...] = record_type._fields
        """The fields, in their order."""
        self.columns = [table.c[name] for name in self.names]
        """The columns, in the order of the fields."""
        self.large = frozenset(large)
        """The fields that may be deferred."""
        self.lean_columns = [
            lean(table.c[name]) if name in self.large else table.c[name] for name in self.names
        ]
        """The same as `columns`, with large values deferred."""

    def where(self, *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
        """Return the query of the rows that fulfil these conditions."""
        return sa.select(*self.columns).where(*conditions)

    def lean(self, *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
        """Return the same query as `where`, of rows that are read lean."""
        return sa.select(*self.lean_columns).where(*conditions)

    def record(self, row: Sequence[object]) -> R:
        """Return the record of a row that has these columns."""
        return self._make(row)

    def new_value(self, name: str) -> sa.ColumnElement[Any]:
        """Return what an update writes to a field, a parameter with its name."""
        if name not in self.large:
            return sa.bindparam(name)
        # A deferred value is not written.
        return sa.func.coalesce(sa.bindparam(name, type_=DeferrableText()), self.table.c[name])

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
        changes = {name: mapper.new_value(name) for name in fields}
        self.statement = sa.update(mapper.table).where(row).values(changes)
        self._names = (KEY, *fields)
        self._values = itemgetter(*(mapper.names.index(name) for name in (key, *fields)))

    def rows(self, records: Iterable[R]) -> list[dict[str, object]]:
        """Return the parameters that store these fields of records."""
        return [dict(zip(self._names, self._values(record), strict=True)) for record in records]


class _Insert(Generic[R]):
    """Stores some fields of new rows; the others are NULL."""

    def __init__(self, mapper: Mapper[R], fields: Sequence[str]) -> None:
        values: dict[str, sa.BindParameter[Any]] = {name: sa.bindparam(name) for name in fields}
        # Inline: what the database fills in is not needed, and some databases send it back at a cost.
        self.statement = sa.insert(mapper.table).values(values).inline()
        self._names = fields
        self._values = itemgetter(*(mapper.names.index(name) for name in fields))

    def rows(self, records: Iterable[R]) -> list[dict[str, object]]:
        """Return the parameters that store records."""
        return [dict(zip(self._names, self._values(record), strict=True)) for record in records]


W = TypeVar("W")


class _ByFields(Generic[W]):
    """What writes some fields of a record, by the fields: `MAX_STATEMENTS` of them, then one with all fields.

    Args:
        make: Returns what writes these fields.
        names: The fields of a record, in their order.
        writable: Those that can be written. None: all.
    """

    def __init__(
        self,
        make: Callable[[Sequence[str]], W],
        names: Sequence[str],
        writable: Collection[str] | None = None,
    ) -> None:
        self._make: Callable[[Sequence[str]], W] = make
        self._names = names
        self._writable = names if writable is None else writable
        self._found: dict[tuple[bool, ...], W] = {}
        self._whole: W | None = None

    def of(self, chosen: tuple[bool, ...]) -> W | None:
        """Return what writes the fields for which this is true, and perhaps others. None: there are none."""
        if (found := self._found.get(chosen)) is not None:
            return found
        fields = [name for name in compress(self._names, chosen) if name in self._writable]
        if not fields:
            return None
        if len(self._found) < MAX_STATEMENTS:
            self._found[chosen] = self._make(fields)
            return self._found[chosen]
        if self._whole is None:
            self._whole = self._make([name for name in self._names if name in self._writable])
        return self._whole


class Inserts(Generic[R]):
    """Stores new rows. A None is left out: each value costs, and most columns of a task are NULL at first.

    Args:
        mapper: Of the rows.
    """

    def __init__(self, mapper: Mapper[R]) -> None:
        self._inserts = _ByFields(partial(_Insert, mapper), mapper.names)

    def statements(self, records: Iterable[R]) -> Iterator[tuple[sa.Insert, list[dict[str, object]]]]:
        """Yield statements with the parameters that store records, in their order."""
        for insert, group in groupby(records, self._insert_of):
            if insert is not None:
                yield insert.statement, insert.rows(group)

    def _insert_of(self, record: R) -> _Insert[R] | None:
        return self._inserts.of(tuple(map(is_not, record, repeat(None))))


class Changes(Generic[R]):
    """Overwrites the fields in which records differ from what is stored.

    A statement that names a column of an index writes the index, whether the value changes or not.

    Args:
        mapper: Of the rows.
        key: The field that is the key.
        fixed: Fields that never change.
    """

    def __init__(self, mapper: Mapper[R], *, key: str, fixed: Collection[str]) -> None:
        changing = [name for name in mapper.names if name not in {key, *fixed}]
        self._updates = _ByFields(partial(_update, mapper, key), mapper.names, changing)

    def statements(
        self, changes: Iterable[tuple[R, R]]
    ) -> Iterator[tuple[sa.Update, list[dict[str, object]]]]:
        """Yield statements with their parameters, for records as they are stored and as they are to be."""
        records: dict[Update[R], list[R]] = {}
        for stored, record in changes:
            update = self._updates.of(tuple(map(ne, stored, record)))
            if update is not None:
                records.setdefault(update, []).append(record)
        for update, changed in records.items():
            yield update.statement, update.rows(changed)


def _update(mapper: Mapper[R], key: str, fields: Sequence[str]) -> Update[R]:
    return Update(mapper, key=key, fields=fields)


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
