"""Opening a PostgreSQL database: its address, its connections, and the upgrade of its schema."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from llama_deploy.concurrency.daemon_threads import in_own_thread
from llama_deploy.errors import ConfigError
from llama_deploy.state_stores.migrations import SCHEMA_REVISION, stored_revision, upgrade_schema
from llama_deploy.state_stores.postgresql_errors import (
    DRIVER_ERRORS,
    is_read_only,
    raise_translated_of_opening,
)
from llama_deploy.web.client_tls import RenewedContext, client_context
from llama_deploy.web.shown_url import shown_scheme

_POOL_SIZE: Final = 8
_CONNECT_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 35.0
"""After how long without an answer a connection counts as lost; the server cancels statements before."""
_SERVER_SETTINGS: Final = {
    "application_name": "llama_deploy",
    "statement_timeout": "30s",
    # A control plane that is paused in a transaction must not block the others.
    "idle_in_transaction_session_timeout": "2s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "jit": "off",
    # Every query has an index whose order it follows, and many stop after some rows. PostgreSQL guesses how
    # many rows a session or a tag has, and a table that was empty a minute ago. If it guesses few, it plans
    # to read the whole table, or to collect and sort all rows of a bitmap, and keeps that plan.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
}
# Keys of advisory locks: arbitrary, and the same in every release.
_UPGRADING: Final = 0x6C6C616D6101
_LISTENING: Final = 0x6C6C6102
_READING_PACKS: Final = 0x6C6C6103
"""The upper half of the key; the lower is of the schema."""
_CHANNEL: Final = "llama_deploy_notices"
_TLS_FILES: Final = ("sslrootcert", "sslcert", "sslkey")
"""The files in an address, with the names that libpq gives them."""
_VERIFYING_MODES: Final = frozenset({"require", "verify-ca", "verify-full"})

_WHERE_WE_ARE: Final = sa.text(
    """
    SELECT quote_ident(current_user),
           quote_ident(coalesce(nspname, current_schema())),
           quote_ident(pg_get_userbyid(relowner))
    FROM (SELECT to_regclass('alembic_version') AS oid) AS ours
    LEFT JOIN pg_class ON pg_class.oid = ours.oid
    LEFT JOIN pg_namespace ON pg_namespace.oid = relnamespace
    """
)


class Address:
    """The address of the database. Its password cannot be shown."""

    def __init__(self, uri: str) -> None:
        try:
            url = sa.make_url(uri)
        except (sa_exc.ArgumentError, ValueError):
            _refuse_address("it cannot be read")  # the cause would show it
        if url.drivername not in {"postgresql", "postgres"}:
            _refuse_address(f"its scheme is {shown_scheme(uri)!r}")
        # Their names are not shown: they may be part of a password that is not percent-encoded.
        if url.query.keys() - {"sslmode", *_TLS_FILES}:
            known = ", ".join(("sslmode", *_TLS_FILES))
            _refuse_address(f"its query may set {known} only; percent-encode any ? in the password")
        if "@" in (url.host or ""):
            _refuse_address("it has more than one @; percent-encode those in the password")
        named = {
            "host": url.host,
            "port": url.port,
            "user": url.username,
            "password": url.password,
            "database": url.database,
            "ssl": _tls(url.query),
        }
        self.name: Final = sa.URL.create(
            "postgresql", host=url.host, port=url.port, database=url.database
        ).render_as_string()
        """For messages; without credentials."""
        self.driver_arguments: Final[Mapping[str, Any]] = {
            **{key: value for key, value in named.items() if value},
            "timeout": _CONNECT_SECONDS,
            "command_timeout": _ANSWER_SECONDS,
            "server_settings": _SERVER_SETTINGS,
        }


def _tls(query: Mapping[str, str | tuple[str, ...]]) -> str | ssl.SSLContext | None:
    """Return the TLS that an address asks for, as the driver takes it.

    The driver itself reads files from the environment and the home directory only.

    Raises:
        ConfigError: A file cannot be used, or has no effect.
    """
    mode, files = query.get("sslmode"), {name: Path(str(query[name])) for name in _TLS_FILES if name in query}
    if not files:
        return None if mode is None else str(mode)
    mode = mode or "verify-full"
    if mode not in _VERIFYING_MODES:
        _refuse_address(f"{' and '.join(files)} need sslmode verify-full, verify-ca or require")
    ca, cert, key = (files.get(name) for name in _TLS_FILES)
    if key is not None and cert is None:
        _refuse_address("sslkey has no effect without sslcert")

    def load() -> ssl.SSLContext:
        context = client_context(ca=ca, cert=cert, key=key, names=_TLS_FILES)
        context.check_hostname = mode == "verify-full"
        if mode == "require" and ca is None:
            context.verify_mode = ssl.CERT_NONE
        return context

    return RenewedContext(load, list(files.values()))


def _refuse_address(reason: str) -> NoReturn:
    raise ConfigError(
        f"this is not the address of a PostgreSQL state store: {reason}; write "
        "postgresql://user:password@host:port/database, with ?sslmode=verify-full&sslrootcert=ca.pem for TLS"
    ) from None


@dataclass(frozen=True, slots=True)
class Place:
    """What the server reports about the schema; names are quoted as in SQL."""

    role: str
    schema: str | None
    """Where the tables are or would be created; None if the role may not use any schema."""
    owner: str | None
    """The role that owns the tables; None if they do not exist."""
    revision: str | None
    """The schema revision; None if the tables do not exist."""

    @property
    def listening_lock(self) -> int:
        """The key of the advisory lock that all listeners to notices of this schema hold."""
        return _LISTENING << 32 | int(self._digest, 16)

    @property
    def packs_lock(self) -> int:
        """The key of the advisory lock that those of them hold whose release reads packs of events."""
        return _READING_PACKS << 32 | int(self._digest, 16)

    @property
    def channel(self) -> str:
        """The channel for notices of this schema. Each schema of a database may hold a state store."""
        return f"{_CHANNEL}_{self._digest}"

    @property
    def _digest(self) -> str:
        # The name, because the OIDs of schemas may differ after a failover.
        return hashlib.blake2b((self.schema or "").encode(), digest_size=4).hexdigest()

    def remedy_for_upgrade(self) -> str:
        """Return what to do if the role may not create or change the tables."""
        if self.owner not in {None, self.role}:
            return (
                f"the tables belong to the role {self.owner}: run llamactl db upgrade as that one, "
                f"or GRANT {self.owner} TO {self.role}"
            )
        if self.schema is None:
            return f"the role {self.role} may not use any schema: CREATE SCHEMA AUTHORIZATION {self.role}"
        return f"as the owner of the schema, GRANT USAGE, CREATE ON SCHEMA {self.schema} TO {self.role}"


def new_engine(address: Address, *, answer_seconds: float | None = _ANSWER_SECONDS) -> AsyncEngine:
    """Return a pool of connections, which are opened on demand. Dispose of it.

    Args:
        address: Where the database is.
        answer_seconds: After how long without an answer a connection counts as lost. None: never.
    """
    arguments = {**address.driver_arguments, "command_timeout": answer_seconds}
    engine = create_async_engine(
        "postgresql+asyncpg://",
        connect_args={**arguments, "prepared_statement_cache_size": 500},
        pool_size=_POOL_SIZE,
        max_overflow=0,
        pool_use_lifo=True,  # the connection used last has the most statements prepared in the caches
        hide_parameters=True,
    )
    sa.event.listen(engine.sync_engine, "handle_error", _leave_a_read_only_server)
    return engine


def _leave_a_read_only_server(context: sa.ExceptionContext) -> None:
    """Discard the pool's connections when one leads to a server that has become read-only.

    After a failover they may stay open, while new ones reach the new primary.
    """
    if is_read_only(context.original_exception):
        context.is_disconnect = True


async def look_at(engine: AsyncEngine, address: Address) -> Place:
    """Return what the database reports about itself. Changes nothing.

    Raises:
        ConfigError: The address is invalid, or the role may not read the tables.
        UnavailableError: The database does not answer.
    """
    with _opening(address, remedy="GRANT CONNECT ON DATABASE to the role of the address"):
        async with engine.connect() as connection:
            role, schema, owner = (await connection.execute(_WHERE_WE_ARE)).one()
    remedy = (
        "as the owner of the tables, "
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}; "
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"
    )
    with _opening(address, remedy=remedy):
        async with engine.connect() as connection:
            revision = await connection.run_sync(stored_revision)
    return Place(role, schema, owner, revision)


async def make_ready(engine: AsyncEngine, address: Address) -> Place:
    """Bring the schema up to date; several may do so at once.

    Raises:
        ConfigError: The address is invalid, the role lacks rights, the database is not a state store, or its
            schema is of another version.
        UnavailableError: The database does not answer.
    """
    place = await look_at(engine, address)
    if place.revision != SCHEMA_REVISION:
        with _opening(address, remedy=place.remedy_for_upgrade()):
            # Alembic runs one upgrade a process at a time, and others must not make this loop wait.
            await in_own_thread("postgresql-upgrade", lambda: asyncio.run(_upgrade(address)))
    return place


async def _upgrade(address: Address) -> None:
    engine = new_engine(address, answer_seconds=None)  # upgrading a large database takes long
    try:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("SET LOCAL statement_timeout TO 0")
            # Alembic takes seconds on a slow machine; a paused upgrade must not block the others for longer.
            await connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout TO '60s'")
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_UPGRADING})")
            await connection.run_sync(partial(upgrade_schema, name=address.name))
    finally:
        await engine.dispose()


@contextlib.contextmanager
def _opening(address: Address, *, remedy: str) -> Iterator[None]:
    try:
        yield
    except DRIVER_ERRORS as exc:
        raise_translated_of_opening(exc, address.name, remedy=remedy)
