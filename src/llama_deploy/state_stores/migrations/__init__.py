"""The schema of the SQL state stores, and how a database gets to it.

Every release carries the steps (`versions/`) from an empty database to its own schema, run by Alembic. Steps
only add, so that two releases can work on one database during a rolling upgrade.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from llama_deploy.errors import ConfigError
from llama_deploy.state_stores.sql.tables import metadata

SCHEMA_REVISION: Final = "0120"
"""The revision that this release works with. Later revisions have greater ids."""

_FIRST_REVISION: Final = "0100"
_VERSION_TABLE: Final = "alembic_version"
# Alembic keeps the upgrade under way in module globals of its own.
_one_upgrade_at_a_time = threading.Lock()


def stored_revision(connection: sa.Connection) -> str | None:
    """Return the schema revision of the database, or None if it does not have a state store's schema."""
    if not sa.inspect(connection).has_table(_VERSION_TABLE):
        return None
    version = sa.table(_VERSION_TABLE, sa.column("version_num", sa.Text))
    return connection.execute(sa.select(version.c.version_num)).scalar_one_or_none()


def upgrade_schema(connection: sa.Connection, *, name: str) -> None:
    """Bring the database to `SCHEMA_REVISION`, inside the transaction that is open on `connection`.

    Does nothing if it is there already, which costs two queries.

    Args:
        connection: A connection to the database.
        name: The database, for error messages.

    Raises:
        ConfigError: The database has a schema that this release cannot upgrade, or tables of another program.
    """
    revision = stored_revision(connection)
    if revision == SCHEMA_REVISION:
        return
    if revision is None:
        _check_no_tables(connection, name)
    elif revision < _FIRST_REVISION:
        raise ConfigError(
            f"the state store {name} was written by a version before the first release (schema revision"
            f" {revision}), which cannot be upgraded: keep it for that version, and set state_store_uri to a"
            " new file or an empty database"
        )
    elif revision > SCHEMA_REVISION:
        raise ConfigError(
            f"the state store {name} was upgraded by a newer release (schema revision {revision}; this"
            f" release works with {SCHEMA_REVISION}): start that release or a later one, or set"
            " state_store_uri to another database"
        )
    # Alembic takes longer to import than everything else here, and is seldom needed.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    with _one_upgrade_at_a_time:
        command.upgrade(config, SCHEMA_REVISION)


def _check_no_tables(connection: sa.Connection, name: str) -> None:
    if taken := sorted(metadata.tables.keys() & set(sa.inspect(connection).get_table_names())):
        raise ConfigError(
            f"the database {name} has the tables {', '.join(taken)} but no schema revision, so it is not"
            " a state store of this program: set state_store_uri to a new file or an empty database"
        )
