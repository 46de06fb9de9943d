"""Logging that tasks of a session that run at the same time overwrite each other's state."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Final

from llama_deploy.types.keys import public_id
from llama_deploy.types.state_keys import name_in, overwritten

logger = logging.getLogger(__name__)

_MAX_SESSIONS: Final = 10_000


class OverwrittenKeys:
    """Logs the first key of each session that a task overwrites without having seen its value."""

    def __init__(self) -> None:
        self._logged: dict[str, None] = {}

    def note(self, state: str, changes: Mapping[str, Any], *, session_id: str, task_id: str) -> None:
        """Compare what a task changes with what its session holds.

        Args:
            state: The session's state, as JSON.
            changes: Top-level keys that are about to be merged into it.
            session_id: The session.
            task_id: The task.
        """
        mine = {key: name for key in changes if (name := name_in(key)) is not None}
        if not mine or session_id in self._logged:
            return
        held = json.loads(state)
        for key, name in mine.items():
            if (other := overwritten(held.get(key), changes[key])) is not None:
                self._log(name, session_id=session_id, task_id=task_id, other=other)
                return

    def _log(self, name: str, *, session_id: str, task_id: str, other: str) -> None:
        self._logged[session_id] = None
        if len(self._logged) > _MAX_SESSIONS:
            del self._logged[next(iter(self._logged))]
        logger.warning(
            "session %s: task %s has overwritten ctx.store[%r], which task %s has changed while both ran; the"
            " change of the latter is lost. Use one key for each task, or the session policy 'enqueue'."
            " Further keys of this session are not logged",
            public_id(session_id),
            public_id(task_id),
            name,
            public_id(other),
            extra={
                "action": "state_overwritten",
                "session_id": public_id(session_id),
                "task_id": public_id(task_id),
                "other_task_id": public_id(other),
                "key": name,
            },
        )
