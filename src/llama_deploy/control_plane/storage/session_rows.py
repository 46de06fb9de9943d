"""The sessions of one transaction."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime
from typing import Any

from llama_deploy.control_plane.decisions.size_limits import SizeLimits
from llama_deploy.control_plane.storage.reads import RowKind, Scope
from llama_deploy.errors import SessionNotFoundError
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import SessionRecord
from llama_deploy.types.json_values import encode_json, utf8_bytes


class SessionRows:
    """Sessions: loaded once, changed in memory, written by `flush`."""

    def __init__(self, tx: StoreTransaction, scope: Scope, *, limits: SizeLimits, now: datetime) -> None:
        self._tx = tx
        self._scope = scope
        self._limits = limits
        self._now = now
        self._records: dict[str, SessionRecord] = {}
        self._new: set[str] = set()
        self._changed: set[str] = set()

    def load(self, session_ids: Collection[str]) -> None:
        """Read sessions."""
        if session_ids:
            self._records.update(self._tx.sessions.load(session_ids))

    def find(self, session_id: str) -> SessionRecord | None:
        """Return a session, None if it does not exist."""
        self._scope.require(RowKind.SESSION, session_id)
        return self._records.get(session_id)

    def get(self, session_id: str) -> SessionRecord:
        """Return a session.

        Raises:
            SessionNotFoundError: It does not exist.
        """
        session = self.find(session_id)
        if session is None:
            raise SessionNotFoundError(f"there is no session {session_id}", session_id=session_id)
        return session

    def add(self, session: SessionRecord) -> None:
        """Store a new session."""
        self._scope.allow(RowKind.SESSION, [session.session_id])
        self._scope.allow(RowKind.OPEN_TASKS, [session.session_id])
        self._records[session.session_id] = session
        self._new.add(session.session_id)

    def merge_state(self, session_id: str, changes: dict[str, Any]) -> SessionRecord:
        """Merge top-level keys into a session's state.

        Raises:
            PayloadTooLargeError: It becomes too large.
        """
        session = self.get(session_id)
        return self.put_state(session, {**json.loads(session.state), **changes})

    def put_state(self, session: SessionRecord, state: dict[str, Any]) -> SessionRecord:
        """Replace a session's state.

        Raises:
            PayloadTooLargeError: It is too large.
        """
        self._scope.require(RowKind.SESSION, session.session_id)
        text = encode_json(state)
        before, after = utf8_bytes(session.state), utf8_bytes(text)
        self._limits.check_state(session.session_id, before=before, after=after)
        changed = session._replace(state=text, version=session.version + 1, updated_at=self._now)
        self._records[session.session_id] = changed
        if session.session_id not in self._new:
            self._changed.add(session.session_id)
        return changed

    def delete(self, session_id: str) -> None:
        """Delete a session with all that belongs to it."""
        self._tx.sessions.delete([session_id])
        del self._records[session_id]
        self._new.discard(session_id)
        self._changed.discard(session_id)

    def flush(self) -> None:
        """Write all changes."""
        for write, ids in ((self._tx.sessions.insert, self._new), (self._tx.sessions.update, self._changed)):
            if ids:
                write([session for key, session in self._records.items() if key in ids])
