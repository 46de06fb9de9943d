"""The state of a run as its journal holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llama_deploy.services.values.session_state import StateCodec
from llama_deploy.workflow_library import StateStore


@dataclass(slots=True, eq=False)
class WrittenState:
    """Finds out whether a run's state has changed since it was written."""

    codec: StateCodec
    text: str
    """The state as it was written last. Set it to what it was if a write was refused."""

    async def change(self, store: StateStore[Any] | None) -> str | None:
        """Return the state as text, which counts as written from now on. None: it has not changed."""
        if store is None:
            return None
        text = await self.codec.encode(store) or ""
        if text == self.text:
            return None
        self.text = text
        return text
