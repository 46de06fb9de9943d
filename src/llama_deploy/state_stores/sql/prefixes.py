"""The order of texts by their characters, whatever the collation of a database is.

PostgreSQL has operators for it, which an index of the class `text_pattern_ops` answers. SQLite has no other
order.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction


class text_above(GenericFunction[bool]):  # noqa: N801 - functions have lower-case names
    """Whether a text is greater than another one."""

    type = sa.Boolean()
    inherit_cache = True


class text_below(GenericFunction[bool]):  # noqa: N801
    """Whether a text is less than another one."""

    type = sa.Boolean()
    inherit_cache = True


class text_order(GenericFunction[str]):  # noqa: N801
    """A text to order by."""

    type = sa.Text()
    inherit_cache = True


def _compared(sign: str, element: Any, compiler: SQLCompiler, options: dict[str, Any]) -> str:
    first, second = (compiler.process(each, **options) for each in element.clauses)
    return f"({first} {sign} {second})"


@compiles(text_above)
def _above(element: text_above, compiler: SQLCompiler, **options: Any) -> str:
    return _compared(">", element, compiler, options)


@compiles(text_above, "postgresql")
def _above_in_postgresql(element: text_above, compiler: SQLCompiler, **options: Any) -> str:
    return _compared("~>~", element, compiler, options)


@compiles(text_below)
def _below(element: text_below, compiler: SQLCompiler, **options: Any) -> str:
    return _compared("<", element, compiler, options)


@compiles(text_below, "postgresql")
def _below_in_postgresql(element: text_below, compiler: SQLCompiler, **options: Any) -> str:
    return _compared("~<~", element, compiler, options)


@compiles(text_order)
def _order(element: text_order, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


@compiles(text_order, "postgresql")
def _order_in_postgresql(element: text_order, compiler: SQLCompiler, **options: Any) -> str:
    return f"{compiler.process(element.clauses, **options)} USING ~<~"
