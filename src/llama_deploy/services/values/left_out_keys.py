"""The keys of `ctx.store` that a session misses because they could not be stored."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

logger = logging.getLogger(__name__)


class LeftOutKeys:
    """Keeps in the state of a session which keys it misses, and why.

    Args:
        state_key: The key of the workflow's state in the session's state.
        workflow_name: Names the service in the log.
    """

    def __init__(self, state_key: str, *, workflow_name: str) -> None:
        self.key = f"{state_key}:left_out"
        """The key of the session's state."""
        self._workflow_name = workflow_name
        self._has_warned = False

    def read(self, state: Mapping[str, Any]) -> dict[str, str]:
        """Return the keys that a session misses, and why."""
        found = state.get(self.key)
        return found if isinstance(found, dict) else {}

    def note(
        self,
        state: dict[str, Any],
        left_out: Mapping[str, str],
        *,
        earlier: Mapping[str, str],
        present: Collection[str],
    ) -> None:
        """Put into the session's state which keys it misses after a run, and warn of the first ones.

        Args:
            state: The session's state.
            left_out: What the run could not store, and why.
            earlier: What earlier tasks could not store.
            present: The keys of the run's state.
        """
        if left_out and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "a task of %s leaves its session without these keys of ctx.store, which cannot be stored: %s."
                " Later tasks of the session do not find them; see docs/explanation/durability.md",
                self._workflow_name,
                "; ".join(left_out.values()),
                extra={"action": "state_left_out"},
            )
        missing = {key: why for key, why in earlier.items() if key not in present} | dict(left_out)
        if missing or self.key in state:
            state[self.key] = missing or None
