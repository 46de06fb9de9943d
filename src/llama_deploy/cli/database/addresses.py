"""The addresses that the commands of `llamactl db` take."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from llama_deploy.cli.error_messages import CommandError
from llama_deploy.state_stores.migrations import SCHEMA_REVISION
from llama_deploy.state_stores.sqlite import database_path
from llama_deploy.state_stores.store_registry import stored_schema_revision


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite state store, None if the address is that of another store.

    Raises:
        CommandError: The store is in memory.
        ConfigError: The address is not valid.
    """
    if not uri.startswith("sqlite:"):
        return None
    path = database_path(uri)
    if path is None:
        raise CommandError("a state store in memory belongs to its process", hint="pass the path of a file")
    return path


def shown(uri: str) -> str:
    """Return the address of a PostgreSQL database without user, password and query."""
    url = sa.make_url(uri)
    return sa.URL.create("postgresql", host=url.host, port=url.port, database=url.database).render_as_string()


async def check_schema(uri: str) -> None:
    """Check that a store has the schema of this release, so that opening it does not upgrade it.

    Raises:
        CommandError: It has another one, or none.
        LlamaDeployError: As `stored_schema_revision`.
    """
    revision = await stored_schema_revision(uri)
    if revision != SCHEMA_REVISION:
        raise CommandError(
            f"the state store has the schema revision {revision or 'none'}; this release requires"
            f" {SCHEMA_REVISION}",
            hint="run `llamactl db upgrade` with the same --store first",
        )
