"""A key of a workflow's state, in a session whose tasks run at the same time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TypedDict

STATE_PREFIX: Final = "__workflow_state__:"
"""The prefix of the reserved keys of a session's state with the states of workflows; the qualified name of
the state's class follows."""
_KEY: Final = ":key:"


class StateKey(TypedDict):
    """The value of one key of `ctx.store`, as the session's state holds it."""

    text: str | None
    """The value as the service has written it. None: the key was removed."""
    digest: str
    """Of the value; empty for None."""
    base: str
    """The digest of the value that the task has begun with; empty if there was none."""
    task_id: str
    """The task that has written it."""


def state_key(state: str, name: str) -> str:
    """Return the key of the session's state for a key of `ctx.store`.

    Args:
        state: The reserved key of the workflow's state.
        name: The key of `ctx.store`.
    """
    return f"{state}{_KEY}{name}"


def name_in(key: str, state: str = STATE_PREFIX) -> str | None:
    """Return the key of `ctx.store` for a key of the session's state. None: it is not for one.

    Args:
        key: The key of the session's state.
        state: The reserved key of the workflow's state, or how it begins.
    """
    if not key.startswith(state):
        return None
    before, found, name = key.partition(_KEY)
    return name if found and state in (before, STATE_PREFIX) else None


def overwritten(current: Any, new: Any) -> str | None:
    """Return the task whose value a new one replaces without having seen it. None: there is none.

    Equal values count too: two tasks that have counted from 7 to 8 have lost one count.

    Args:
        current: What the session's state holds under the key.
        new: What is to be stored, a `StateKey`.
    """
    if not isinstance(current, dict) or not isinstance(new, dict):
        return None
    if current.get("digest") == new.get("base"):
        return None
    task_id = current.get("task_id")
    return task_id if isinstance(task_id, str) and task_id != new.get("task_id") else None


def state_of_workflows(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what workflows keep in a session's state, by the class of their state.

    A session whose tasks run at the same time stores each key by itself; they are put together.
    """
    found: dict[str, Any] = {}
    for key, held in state.items():
        if not key.startswith(STATE_PREFIX) or held is None:
            continue
        name, is_key, of_store = key.removeprefix(STATE_PREFIX).partition(_KEY)
        text = held.get("text") if isinstance(held, dict) else held
        if not isinstance(text, str):
            continue
        value = json.loads(text.partition("\n")[2])
        if is_key:
            found.setdefault(name, {})[of_store] = value
        else:
            found[name] = value
    return found
