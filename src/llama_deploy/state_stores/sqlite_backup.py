"""Copies of an SQLite database: made while a control plane works on it, checked, and put in its place.

A copy is written under another name and gets its own when it is complete and on the disk. So an interruption
at any moment leaves what was there before, and perhaps a file that ends in `.partial`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from llama_deploy.errors import ConfigError, LlamaDeployError, UnavailableError
from llama_deploy.state_stores.migrations import SCHEMA_REVISION
from llama_deploy.state_stores.sqlite_lock import OWNER_ONLY, FileLock

PARTIAL: Final = ".partial"
_BUSY_TIMEOUT_SECONDS: Final = 30.0
_SIDE_FILES: Final = ("-wal", "-shm")


def back_up(database: Path, target: Path) -> int:
    """Write a consistent copy of a database to a new file, and return its size in bytes.

    A control plane may work on the database meanwhile, and is not held up. Its write-ahead log grows until
    the copy is made.

    Raises:
        ConfigError: The database is not a state store, or the target exists or cannot be written.
        UnavailableError: Reading or writing failed, for example because the disk is full.
    """
    check_store(database, what="the state store")
    _check_free(target)
    with _new_file(target) as partial:
        _copy(database, partial)
        _check_whole(partial)
    return target.stat().st_size


def restore(
    backup: Path, database: Path, *, prepare: Callable[[Path], None], replace: bool = False
) -> Path | None:
    """Put a copy of a backup in the place of a database that no control plane uses.

    Args:
        backup: The backup. It stays as it is.
        database: Where to put it.
        prepare: Changes the copy before it takes its place.
        replace: Whether there may be a database already. It is kept under another name.

    Returns:
        Where the database is that was there before. None: there was none.

    Raises:
        ConfigError: The backup is not a state store of this or an earlier release, it is damaged, or there is
            a database already.
        StoreLockedError: A control plane uses the database.
        UnavailableError: Reading or writing failed.
    """
    check_store(backup, what="the backup")
    _check_whole(backup)
    if _size_of(database) and not replace:
        raise ConfigError(
            f"there is a state store at {database} already; pass --replace to keep it under another name, or"
            " choose another place"
        )
    lock = FileLock(database)  # creates an empty file if there is none
    try:
        with _new_file(database) as partial:
            _copy(backup, partial)
            prepare(partial)
            kept = _keep(database)
    except BaseException:
        if not _size_of(database):
            database.unlink(missing_ok=True)
        raise
    else:
        return kept
    finally:
        lock.release()


def vacuum(database: Path) -> tuple[int, int]:
    """Write a database again without unused space; return its size before and after, in bytes.

    From then on, control planes return the space of deleted rows to the file system.

    Raises:
        ConfigError: The file is not a state store.
        StoreLockedError: A control plane uses it.
        UnavailableError: Reading or writing failed, or the disk has no room for a second copy.
    """
    check_store(database, what="the state store")
    lock = FileLock(database)
    try:
        before = database.stat().st_size
        free = shutil.disk_usage(database.parent).free
        if free < before:
            raise UnavailableError(
                f"the disk of {database} has {free} bytes free, and writing the database again needs up to"
                f" {before}: make room first"
            )
        with _translated(database), closing(_open(database)) as connection:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return before, database.stat().st_size
    finally:
        lock.release()


def check_store(path: Path, *, what: str) -> str:
    """Return the schema revision of a state store.

    Raises:
        ConfigError: The file is not there, is not a state store, or a newer release has written it.
        UnavailableError: It cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; give the path of {what}")
    try:
        with closing(_open(path)) as connection:
            rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}:
            raise ConfigError(f"{path} is not a state store: {exc}; give the path of {what}") from exc
        raise UnavailableError(f"{path} cannot be read: {exc}") from exc
    revision = str(rows[0][0]) if rows else ""
    if not revision or revision > SCHEMA_REVISION:
        raise ConfigError(
            f"{path} was written by a newer release (schema revision {revision or 'unknown'}; this release"
            f" works with {SCHEMA_REVISION}): use that release or a later one"
        )
    return revision


def _check_free(target: Path) -> None:
    if target.exists():
        raise ConfigError(f"{target} exists already, and a backup overwrites nothing; choose another name")
    if not target.parent.is_dir():
        raise ConfigError(f"there is no folder {target.parent}; create it, or choose another one")


def _check_whole(path: Path) -> None:
    with _translated(path), closing(_open(path)) as connection:
        found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
    if found != ["ok"]:
        raise ConfigError(f"{path} is damaged: {'; '.join(found)}; use another backup")


def _copy(source: Path, target: Path) -> None:
    with _translated(source), closing(_open(source)) as reading, closing(_open(target)) as writing:
        # All pages in one step, which is one snapshot. In several steps, each change would start it again.
        reading.backup(writing, pages=-1)
        # One file, also while it is not open.
        writing.execute("PRAGMA journal_mode = DELETE")


@contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """Let the body write a file, which then takes the place of `target`, unless the body fails."""
    partial = target.with_name(target.name + PARTIAL)
    _delete(partial)
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY))
        yield partial
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)
    except LlamaDeployError:
        raise  # some are also OSError
    except OSError as exc:
        raise UnavailableError(f"{target} cannot be written: {exc.strerror}") from exc
    finally:
        _delete(partial)


def _keep(database: Path) -> Path | None:
    """Give a database that is about to be replaced a second name, and return it; None if it is empty."""
    if not _size_of(database):
        return None
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    kept = database.with_name(f"{database.name}.replaced-{stamp}")
    with suppress(sqlite3.Error), closing(_open(database)) as connection:
        # Its write-ahead log would be taken for that of the copy.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
    os.link(database, kept)
    for ending in _SIDE_FILES:
        side = database.with_name(database.name + ending)
        if side.exists():  # of a database that is damaged
            side.rename(kept.with_name(kept.name + ending))
    return kept


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=_BUSY_TIMEOUT_SECONDS)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as exc:
        raise UnavailableError(f"copying {path} failed: {exc}") from exc


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    for ending in ("", "-journal", *_SIDE_FILES, ".lock"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
