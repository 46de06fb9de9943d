"""The schema of the SQL state stores, and how a database gets to it.

Every release carries the steps (`versions/`) from an empty database to its own schema, run by Alembic.
"""

from __future__ import annotations

import threading
from pathlib import Path

import sqlalchemy as sa

from llama_deploy.errors import ConfigError
from llama_deploy.state_stores.sql.tables import metadata

SCHEMA_REVISION = "0003"
"""The revision that this release works with."""

_VERSION_TABLE = "alembic_version"
# Alembic keeps the upgrade under way in module globals of its own.
_one_upgrade_at_a_time = threading.Lock()


def stored_revision(connection: sa.Connection) -> str | None:
    """Return the schema revision of the database, or None if it has no schema of ours."""
    if not sa.inspect(connection).has_table(_VERSION_TABLE):
        return None
    version = sa.table(_VERSION_TABLE, sa.column("version_num", sa.Text))
    return connection.execute(sa.select(version.c.version_num)).scalar_one_or_none()


def upgrade_schema(connection: sa.Connection) -> None:
    """Bring the database to `SCHEMA_REVISION`, inside the transaction that is open on `connection`.

    Does nothing if it is there already, which costs two queries.

    Raises:
        ConfigError: The database has a schema that this release does not know, or tables of something else.
    """
    revision = stored_revision(connection)
    if revision == SCHEMA_REVISION:
        return
    if revision is None:
        _refuse_foreign_tables(connection)
    # Alembic takes longer to import than everything else here, and is seldom needed.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    folder = Path(__file__).parent
    known = {script.revision for script in ScriptDirectory(str(folder)).walk_revisions()}
    if revision is not None and revision not in known:
        raise ConfigError(
            f"the database has schema revision {revision!r}, which this release does not know (it works with "
            f"{SCHEMA_REVISION!r}): start the newer release that wrote it, or choose another database"
        )
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    with _one_upgrade_at_a_time:
        command.upgrade(config, SCHEMA_REVISION)


def _refuse_foreign_tables(connection: sa.Connection) -> None:
    taken = sorted(metadata.tables.keys() & set(sa.inspect(connection).get_table_names()))
    if taken:
        raise ConfigError(
            f"the database is not a state store but has tables of the same names ({', '.join(taken)}): "
            "choose another database"
        )
