"""SQLAlchemy statements executed on the driver itself: compiled once, then only filled in.

A row by its key takes SQLAlchemy 35 µs in Python and the driver 4; a task takes some 17 statements.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple, TypeAlias, cast

import sqlalchemy as sa
from sqlalchemy.sql.compiler import SQLCompiler

Parameters: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Sequence[Any]
_Process: TypeAlias = Callable[[Any], Any]


class _Prepared(NamedTuple):
    """A statement as the driver takes it."""

    text: str
    binds: Sequence[tuple[str, _Process | None]]
    """The parameters in the order of their positions, each with its conversion for the driver."""
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

    def execute(self, statement: sa.Executable, parameters: Parameters | Sequence[Parameters]) -> list[Row]:
        """Execute a statement, once for each of several sets of parameters; these have the same names.

        Args:
            statement: Cached with its text, so there should be few different ones.
            parameters: Those for an expanding parameter are lists, of few different lengths.
        """
        if not isinstance(parameters, Mapping):
            prepared = self._prepare(statement, parameters[0])
            self._driver.executemany(prepared.text, [_fill(prepared, each) for each in parameters])
            return []
        prepared = self._prepare(statement, parameters)
        found = self._driver.execute(prepared.text, _fill(prepared, parameters)).fetchall()
        if not prepared.results:
            return found
        return [_ours(row, prepared.results) for row in found]

    def scan(self, statement: sa.Executable, parameters: Parameters) -> Generator[Row]:
        """Yield the rows of a statement; a row is read when it is asked for. The caller closes it."""
        prepared = self._prepare(statement, parameters)
        with closing(self._driver.execute(prepared.text, _fill(prepared, parameters))) as cursor:
            for row in cursor:
                yield _ours(row, prepared.results)

    def _prepare(self, statement: sa.Executable, parameters: Parameters) -> _Prepared:
        sizes = (len(value) for value in parameters.values() if isinstance(value, list))
        key = (statement, *sizes)
        if (prepared := self._prepared.get(key)) is None:
            prepared = self._prepared[key] = _compile(statement, parameters, self.dialect)
        return prepared


def _compile(statement: sa.Executable, parameters: Parameters, dialect: sa.Dialect) -> _Prepared:
    element = cast("sa.ClauseElement", statement)
    compiled = cast("SQLCompiler", element.compile(dialect=dialect, column_keys=list(parameters)))
    state = compiled.construct_expanded_state(dict(parameters))
    results: list[tuple[int, _Process]] = []
    if isinstance(statement, sa.Select):
        for place, column in enumerate(statement.selected_columns):
            process = column.type.dialect_impl(dialect).result_processor(dialect, None)
            if process is not None:
                results.append((place, process))
    types = {name: bind.type.dialect_impl(dialect) for name, bind in compiled.binds.items()}
    names = state.positiontup or ()
    parents = {single: name for name, singles in state.parameter_expansion.items() for single in singles}
    return _Prepared(
        text=state.statement,
        binds=[(name, types[parents.get(name, name)].bind_processor(dialect)) for name in names],
        results=results,
        expanded=state.parameter_expansion,
        fixed={name: state.parameters[name] for name in names if parents.get(name, name) not in parameters},
    )


def _fill(prepared: _Prepared, parameters: Parameters) -> list[Any]:
    if prepared.expanded or prepared.fixed:
        parameters = {**parameters, **prepared.fixed}
        for name, singles in prepared.expanded.items():
            parameters.update(zip(singles, parameters[name], strict=True))
    return [
        value if (value := parameters[name]) is None or process is None else process(value)
        for name, process in prepared.binds
    ]


def _ours(row: Sequence[Any], results: Sequence[tuple[int, _Process]]) -> list[Any]:
    values = list(row)
    for place, process in results:
        # NULL is None in every column type of ours, and most columns of a task are NULL most of the time.
        if (value := values[place]) is not None:
            values[place] = process(value)
    return values
