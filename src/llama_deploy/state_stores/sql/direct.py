"""SQLAlchemy statements executed on the driver itself: compiled once, then only filled in.

A row by its key takes SQLAlchemy 35 µs in Python and the driver 4; a task takes some 17 statements.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias, cast

import sqlalchemy as sa
from sqlalchemy.sql.compiler import SQLCompiler

Parameters: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Sequence[Any]
_Process: TypeAlias = Callable[[Any], Any]


class _Prepared(NamedTuple):
    """A statement as the driver takes it."""

    text: str
    pick: Callable[[Parameters], Sequence[Any]]
    """Returns the values of the parameters in the order of their positions."""
    binds: Sequence[tuple[int, _Process]]
    """The positions whose values have to be converted for the driver."""
    results: Sequence[tuple[int, _Process]]
    """The positions in a row whose values have to be converted."""
    expanded: Mapping[str, Sequence[str]]
    """The names of the single values, by that of a parameter with several."""
    fixed: Parameters
    """Values that belong to the statement."""


class DirectConnection:
    """The part of `sqlalchemy.Connection` that a store transaction needs, over an open driver connection.

    It does not begin or end transactions, and does not translate errors of the driver.

    Args:
        driver: Used by one thread at a time. The caller closes it.
        dialect: The dialect of the statements.
    """

    def __init__(self, driver: sqlite3.Connection, dialect: sa.Dialect) -> None:
        self.dialect = dialect
        self._driver = driver
        self._prepared: dict[tuple[object, ...], _Prepared] = {}

    def execute(self, statement: sa.Executable, parameters: Parameters | list[Parameters]) -> list[Row]:
        """Execute a statement, once for each of several sets of parameters; these have the same names.

        Args:
            statement: Cached with its text, so there should be few different ones.
            parameters: Those for an expanding parameter are lists, of few different lengths.
        """
        if isinstance(parameters, list):
            prepared = self._prepare(statement, parameters[0], ())
            self._driver.executemany(prepared.text, [_fill(prepared, each) for each in parameters])
            return []
        prepared = self._prepare(statement, parameters, _sizes(parameters))
        found = self._driver.execute(prepared.text, _fill(prepared, parameters)).fetchall()
        if not prepared.results:
            return found
        return [_converted(row, prepared.results) for row in found]

    def scan(self, statement: sa.Executable, parameters: Parameters) -> Generator[Row]:
        """Yield the rows of a statement; a row is read when it is asked for. The caller closes it."""
        prepared = self._prepare(statement, parameters, _sizes(parameters))
        with closing(self._driver.execute(prepared.text, _fill(prepared, parameters))) as cursor:
            for row in cursor:
                yield _converted(row, prepared.results)

    def _prepare(self, statement: sa.Executable, parameters: Parameters, sizes: tuple[int, ...]) -> _Prepared:
        key = (statement, sizes)
        if (prepared := self._prepared.get(key)) is None:
            prepared = self._prepared[key] = _compile(statement, parameters, self.dialect)
        return prepared


def _sizes(parameters: Parameters) -> tuple[int, ...]:
    """Return the lengths of the lists, on which the text of a statement depends."""
    return tuple([len(value) for value in parameters.values() if type(value) is list])


def _compile(statement: sa.Executable, parameters: Parameters, dialect: sa.Dialect) -> _Prepared:
    element = cast("sa.ClauseElement", statement)
    compiled = cast("SQLCompiler", element.compile(dialect=dialect, column_keys=list(parameters)))
    state = compiled.construct_expanded_state(dict(parameters))
    results: list[tuple[int, _Process]] = []
    if isinstance(statement, sa.Select):
        for place, column in enumerate(statement.selected_columns):
            read = column.type.dialect_impl(dialect).result_processor(dialect, None)
            if read is not None:
                results.append((place, read))
    processors = {name: _bind_processor(bind.type, dialect) for name, bind in compiled.binds.items()}
    names = state.positiontup or ()
    parents = {single: name for name, singles in state.parameter_expansion.items() for single in singles}
    return _Prepared(
        text=state.statement,
        pick=_pick(names),
        binds=[
            (place, process)
            for place, name in enumerate(names)
            if (process := processors[parents.get(name, name)]) is not None
        ],
        results=results,
        expanded=state.parameter_expansion,
        fixed={name: state.parameters[name] for name in names if parents.get(name, name) not in parameters},
    )


def _pick(names: Sequence[str]) -> Callable[[Parameters], Sequence[Any]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda parameters: [parameters[name] for name in names]


def _bind_processor(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> _Process | None:
    if isinstance(kind, sa.Boolean):
        return int  # SQLAlchemy's also checks the value, in two calls
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _fill(prepared: _Prepared, parameters: Parameters) -> list[Any]:
    if prepared.expanded or prepared.fixed:
        parameters = {**parameters, **prepared.fixed}
        for name, singles in prepared.expanded.items():
            parameters.update(zip(singles, parameters[name], strict=True))
    return _converted(prepared.pick(parameters), prepared.binds)


def _converted(given: Sequence[Any], processes: Sequence[tuple[int, _Process]]) -> list[Any]:
    values = list(given)
    for place, process in processes:
        # NULL is None in every column type of ours, and most columns of a task are NULL most of the time.
        if (value := values[place]) is not None:
            values[place] = process(value)
    return values
