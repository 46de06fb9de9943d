"""Which state a session had at a point in time. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import NO_STATE, SavedStateRecord, SessionRecord

KEPT_STATES: Final = 20
"""How many earlier states of a session are kept."""
MAX_KEPT_CHARACTERS: Final = 64 * 1024
"""Of a larger state is only kept, when it is replaced, that there was one: as an empty text."""


def replaced(session: SessionRecord) -> SavedStateRecord | None:
    """Return what to keep of a session's state, read whole, that is about to be replaced. None: nothing."""
    state = text_of(session.state)
    is_new = session.version == 0 and state == NO_STATE
    if is_new:
        return None
    kept = state if len(state) <= MAX_KEPT_CHARACTERS else ""
    return SavedStateRecord(session.session_id, session.version, kept, session.updated_at)


def state_at(at: datetime, session: SessionRecord, saved: Sequence[SavedStateRecord]) -> str | None:
    """Return the state that a session had, and still has if it has not changed since.

    Args:
        at: When. Not before the session was created.
        session: The session as it is now, read whole.
        saved: Its earlier states, as far as they were kept.

    Returns:
        The state as JSON. None: it was not kept.
    """
    if session.updated_at <= at:
        return text_of(session.state)
    following = session.version, session.updated_at
    for state in sorted(saved, key=lambda each: -each.version):
        if state.version != following[0] - 1:
            return None
        if state.stored_at <= at:
            return state.state or None
        following = state.version, state.stored_at
    # A session begins with version 0, whose empty state is not kept.
    return NO_STATE if following[0] == 1 else None
