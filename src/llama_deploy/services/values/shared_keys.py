"""The state of a workflow in a session whose tasks run at the same time: each key is stored by itself.

A task stores the keys that it has changed since it began. So tasks that change different keys do not
overwrite each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from llama_deploy.errors import SerializationError
from llama_deploy.services.values.writing import Writing
from llama_deploy.types.state_keys import StateKey, name_in, state_key


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """Reads and writes the keys of one state.

    Args:
        key: The reserved key of the state.
        writing: Writes values.
    """

    key: str
    writing: Writing

    def bases(self, state: Mapping[str, Any]) -> dict[str, str]:
        """Return the digests of the values in a session's state, by their keys."""
        return {name: held["digest"] for name, held in self._held(state).items() if held["text"] is not None}

    def read(self, state: Mapping[str, Any], *, session_id: str | None) -> dict[str, Any]:
        """Return the values in a session's state.

        Raises:
            SerializationError: One cannot be read.
            SignatureError: One was not signed with a key of this service.
        """
        values: dict[str, Any] = {}
        for name, held in self._held(state).items():
            if held["text"] is not None:
                text = self.writing.open(held["text"], context=self._context(session_id, name))
                values[name] = self.writing.read(text)
        return values

    def changes(
        self,
        texts: Mapping[str, str],
        *,
        bases: Mapping[str, str],
        keep: Collection[str],
        session_id: str | None,
        task_id: str | None,
    ) -> dict[str, StateKey]:
        """Return what to store of a state after a run, by the keys of the session's state.

        Args:
            texts: The values at its end.
            bases: The digests of the values at its beginning.
            keep: Keys that could not be written, and stay as they are.
            session_id: The session.
            task_id: The task.
        """
        changed: dict[str, StateKey] = {}
        for name in {**texts, **bases}:
            text, base = texts.get(name), bases.get(name, "")
            digest = "" if text is None else digest_of(text)
            if digest == base or name in keep:
                continue
            sealed = None
            if text is not None:
                sealed = self.writing.seal(text, context=self._context(session_id, name))
            changed[state_key(self.key, name)] = StateKey(
                text=sealed, digest=digest, base=base, task_id=task_id or ""
            )
        return changed

    def _held(self, state: Mapping[str, Any]) -> dict[str, StateKey]:
        found: dict[str, StateKey] = {}
        for key, held in state.items():
            if (name := name_in(key, self.key)) is not None and held is not None:
                if not isinstance(held, dict) or held.keys() < StateKey.__annotations__.keys():
                    path = f"$[{key!r}]"
                    raise SerializationError(f"{path} of the session's state is damaged", path=path)
                found[name] = StateKey(
                    text=held["text"], digest=held["digest"], base=held["base"], task_id=held["task_id"]
                )
        return found

    def _context(self, session_id: str | None, name: str) -> str:
        return f"session:{session_id or ''}:{state_key(self.key, name)}"


def digest_of(text: str) -> str:
    """Return what identifies the value of a key."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
