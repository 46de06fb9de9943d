"""The sessions of one transaction."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime
from typing import Any

from llama_deploy.control_plane.decisions.size_limits import SizeLimits
from llama_deploy.control_plane.decisions.state_versions import KEPT_STATES, replaced
from llama_deploy.control_plane.storage.reads import RowKind, Scope
from llama_deploy.errors import SessionNotFoundError
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.large_values import DEFERRED_BYTES, Deferred, text_of
from llama_deploy.state_stores.records import SavedStateRecord, SessionRecord
from llama_deploy.types import SessionPolicy
from llama_deploy.types.json_values import encode_json, utf8_bytes
from llama_deploy.types.keys import public_id


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
        self._replaced: list[SavedStateRecord] = []
        """States that were replaced."""

    def load(self, session_ids: Collection[str]) -> None:
        """Read sessions."""
        if session_ids:
            self._records.update(self._tx.sessions.load(session_ids, lean=True))

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
            shown = public_id(session_id)
            raise SessionNotFoundError(f"there is no session {shown}", session_id=shown)
        return session

    def policy_of(self, session_id: str) -> SessionPolicy | None:
        """Return the policy of a session, None if it does not exist.

        A policy never changes, so it is read when it is needed, without having been declared or locked.
        """
        if (session := self._records.get(session_id)) is not None:
            return session.policy
        return self._tx.sessions.policies([session_id]).get(session_id)

    def add(self, session: SessionRecord) -> None:
        """Store a new session."""
        self._scope.allow(RowKind.SESSION, [session.session_id])
        self._scope.allow(RowKind.OPEN_TASKS, [session.session_id])
        self._records[session.session_id] = session
        self._new.add(session.session_id)

    def state_of(self, session: SessionRecord) -> str:
        """Return a session's state as JSON. A large one is read now."""
        if isinstance(session.state, Deferred):
            return text_of(self._tx.sessions.load([session.session_id])[session.session_id].state)
        return session.state

    def whole(self, session: SessionRecord) -> SessionRecord:
        """Return a session with its state, which is read now if it is large."""
        return session._replace(state=self.state_of(session))

    def merge_state(self, session_id: str, changes: dict[str, Any]) -> SessionRecord:
        """Merge top-level keys into a session's state.

        Raises:
            PayloadTooLargeError: It becomes too large.
        """
        session = self.whole(self.get(session_id))
        return self.put_state(session, {**json.loads(text_of(session.state)), **changes})

    def put_state(self, session: SessionRecord, state: dict[str, Any]) -> SessionRecord:
        """Replace the state of a session that was read whole.

        Raises:
            PayloadTooLargeError: It is too large.
        """
        self._scope.require(RowKind.SESSION, session.session_id)
        text = encode_json(state)
        before, after = utf8_bytes(text_of(session.state)), utf8_bytes(text)
        self._limits.check_state(session.session_id, before=before, after=after)
        changed = session._replace(state=text, version=session.version + 1, updated_at=self._now)
        if (earlier := replaced(session)) is not None:
            self._replaced.append(earlier)
        if session.session_id in self._new:
            self._records[session.session_id] = changed
        elif after > DEFERRED_BYTES:
            # At once: the large states of many sessions need not be in memory together.
            self._tx.sessions.update([changed])
            self._records[session.session_id] = changed._replace(state=Deferred(after))
            self._changed.discard(session.session_id)
        else:
            self._records[session.session_id] = changed
            self._changed.add(session.session_id)
        return changed

    def saved_states(self, session_id: str) -> list[SavedStateRecord]:
        """Return earlier states of a session, the oldest first."""
        self._scope.require(RowKind.SESSION, session_id)
        saved = self._tx.sessions.saved_states(session_id)
        return saved + [each for each in self._replaced if each.session_id == session_id]

    def delete(self, session_id: str) -> None:
        """Delete a session with all that belongs to it."""
        self._tx.sessions.delete([session_id])
        del self._records[session_id]
        self._new.discard(session_id)
        self._changed.discard(session_id)
        self._replaced = [each for each in self._replaced if each.session_id != session_id]

    def flush(self) -> None:
        """Write all changes."""
        for write, ids in ((self._tx.sessions.insert, self._new), (self._tx.sessions.update, self._changed)):
            if ids:
                write([session for key, session in self._records.items() if key in ids])
        if self._replaced:
            self._tx.sessions.save_states(self._replaced, keep=KEPT_STATES)
