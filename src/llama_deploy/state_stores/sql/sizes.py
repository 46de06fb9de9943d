"""The size of a text in SQL, and columns that are read without their large values."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from llama_deploy.state_stores.large_values import DEFERRED_BYTES, Deferred

_DEFERRED: Final = "#"
"""What stands before the size of a value that is deferred; the values are JSON objects."""


class utf8_length(GenericFunction[int]):  # noqa: N801 - functions have lower-case names
    """How many bytes a text takes in UTF-8."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(utf8_length)
def _standard(element: utf8_length, compiler: SQLCompiler, **options: Any) -> str:
    return f"octet_length({compiler.process(element.clauses, **options)})"


@compiles(utf8_length, "sqlite")
def _sqlite(element: utf8_length, compiler: SQLCompiler, **options: Any) -> str:
    # `octet_length` is there from SQLite 3.43 on.
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"


class DeferrableText(sa.types.TypeDecorator[str | Deferred]):
    """A JSON object as text, or that it is deferred."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | Deferred | None, dialect: sa.Dialect) -> str | None:
        """Return the text, None for a value that is not to be written."""
        del dialect
        return None if isinstance(value, Deferred) else value

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | Deferred | None:
        """Return the text, or that it is deferred."""
        del dialect
        if value is not None and value.startswith(_DEFERRED):
            return Deferred(int(value[len(_DEFERRED) :]))
        return value


def lean(column: sa.Column[Any]) -> sa.Label[str | Deferred]:
    """Return a column of JSON objects that is read without its large values."""
    size = utf8_length(column)
    limit: sa.ColumnClause[int] = sa.literal_column(str(DEFERRED_BYTES))
    shown = sa.literal_column(f"'{_DEFERRED}'", sa.Text()).concat(sa.cast(size, sa.Text()))
    value = sa.case((size > limit, shown), else_=column)
    return sa.type_coerce(value, DeferrableText()).label(column.name)
