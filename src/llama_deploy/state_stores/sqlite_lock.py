"""The lock that keeps a second control plane away from an SQLite file."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import threading
from pathlib import Path
from typing import Final

from llama_deploy.concurrency.forked_children import forget, keep_from_children
from llama_deploy.errors import ConfigError, StoreLockedError

_BYTE: Final = 1 << 62
"""The byte of the database that is locked, far behind all that SQLite stores or locks."""
_TAKEN: Final = frozenset({errno.EACCES, errno.EAGAIN})
_MAX_TRIES: Final = 10

_locked: Final[set[tuple[int, int]]] = set()
"""The databases that this process has locked, by device and number.

To open and close such a file would drop the locks that SQLite has on it; see "Advisory record locking" in
`fcntl(2)`.
"""
_guard: Final = threading.Lock()


OWNER_ONLY: Final = 0o600
"""The mode of new files. SQLite gives that of the database to its log."""


class FileLock:
    """Holds two locks until `release`: one on the database itself, and one on `<database>.lock`.

    The first one holds whatever happens to the second file, and for all names of the database. It needs
    Linux. The second file has the number of this process in it, for the message to others.

    Raises:
        ConfigError: The folder or the files cannot be written.
        StoreLockedError: Another control plane has a lock.
    """

    def __init__(self, database: Path) -> None:
        note = database.with_name(database.name + ".lock")
        self._descriptors: list[int] = []
        self._key: tuple[int, int] | None = None
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            is_ours = self._lock_database(database) and self._lock_note(note)
        except OSError as exc:
            self.release()
            raise ConfigError(f"cannot write into the folder of the state store {database}: {exc}") from exc
        if not is_ours:
            self.release()
            raise _taken(database, note)

    def release(self) -> None:
        """Let others in. Idempotent.

        The files stay: to delete one could take the lock away from the next holder.
        """
        with _guard:
            while self._descriptors:
                descriptor = self._descriptors.pop()
                forget(descriptor)
                os.close(descriptor)
            if self._key is not None:
                _locked.discard(self._key)
                self._key = None

    def _lock_database(self, database: Path) -> bool:
        with _guard:
            if _identity(database) in _locked:
                return False
            descriptor = self._open(database)
            if not _lock_byte(descriptor):
                return False
            self._key = _key_of(os.fstat(descriptor))
            _locked.add(self._key)
        return True

    def _lock_note(self, note: Path) -> bool:
        for _ in range(_MAX_TRIES):
            try:
                descriptor = self._open(note, os.O_NOFOLLOW)
            except OSError as exc:
                if exc.errno != errno.ELOOP:
                    raise
                note.unlink(missing_ok=True)  # what a link leads to is not ours to write into
                continue
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                note.unlink(missing_ok=True)  # the same
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            if _identity(note) == _key_of(found):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return True
        raise OSError(errno.EAGAIN, f"{note} is replaced all the time")

    def _open(self, path: Path, flags: int = 0) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, OWNER_ONLY)
        keep_from_children(descriptor)
        self._descriptors.append(descriptor)
        return descriptor


def _lock_byte(descriptor: int) -> bool:
    """Lock a byte for an open file, not for this process; False if another one has it."""
    command = getattr(fcntl, "F_OFD_SETLK", None)
    if command is None:
        return True
    # `struct flock`: type, whence, start, length, process.
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _BYTE, 1, 0)
    try:
        fcntl.fcntl(descriptor, command, request)
    except OSError as exc:
        # A file system that has no such locks still has the other one.
        return exc.errno not in _TAKEN
    return True


def _taken(database: Path, note: Path) -> StoreLockedError:
    try:
        holder = note.read_bytes()[:32].decode(errors="replace").strip()
    except OSError:
        holder = ""
    return StoreLockedError(
        f"another control plane (process {holder or 'unknown'}) uses the state store {database}: stop that"
        " one, or give this one another file or data folder; SQLite supports only one control plane",
        path=str(database),
        pid=int(holder) if holder.isdecimal() else None,
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        return _key_of(path.stat())
    except OSError:
        return None


def _key_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
