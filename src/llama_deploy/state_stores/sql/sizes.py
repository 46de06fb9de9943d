"""The size of a text in SQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction


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
