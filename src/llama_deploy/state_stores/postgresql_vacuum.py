"""`VACUUM (ANALYZE)` on the tables of a state store in PostgreSQL."""

from __future__ import annotations

from llama_deploy.state_stores.postgresql_errors import DRIVER_ERRORS, raise_translated
from llama_deploy.state_stores.postgresql_opening import Address, new_engine
from llama_deploy.state_stores.sql.tables import metadata


async def vacuum_tables(uri: str) -> list[str]:
    """Make the space of deleted rows free for new ones, and let PostgreSQL estimate sizes; return the tables.

    Control planes may be running.

    Raises:
        ConfigError: The address is invalid.
        UnavailableError: The database does not answer.
    """
    address = Address(uri)
    engine = new_engine(address, answer_seconds=None).execution_options(isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            await connection.exec_driver_sql("SET statement_timeout TO 0")
            for name in metadata.tables:
                await connection.exec_driver_sql(f'VACUUM (ANALYZE) "{name}"')
    except DRIVER_ERRORS as exc:
        raise_translated(exc, address.name)
    finally:
        await engine.dispose()
    return list(metadata.tables)
