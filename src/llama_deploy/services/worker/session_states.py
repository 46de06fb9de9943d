"""The workflow's state within the state of a session, before and after a run."""

from __future__ import annotations

from typing import Any

from workflows import Context

from llama_deploy.services.values.session_state import StateCodec
from llama_deploy.services.worker.attempt import WorkflowState


class SessionStates:
    """Reads the workflow's state from a session's state before a run, and writes it back after."""

    def __init__(self, codec: StateCodec) -> None:
        self._codec = codec

    async def load(self, call: WorkflowState) -> Context | None:
        """Return a context with the workflow's state. None: the session holds none.

        Raises:
            SerializationError: The session holds a state that this workflow cannot read.
            SignatureError: The session holds a state that was not signed with a key of this service.
        """
        self.note(call)
        return self._codec.restore(call.state, session_id=call.session_id)

    async def save(self, ctx: Context, call: WorkflowState) -> None:
        """Put the workflow's state after a run into `call.state`.

        Raises:
            SerializationError: A value in the state cannot be written; the path says where.
        """
        call.state.update(await self._codec.capture(ctx, call.state, session_id=call.session_id))

    def note(self, call: WorkflowState) -> None:
        """Note which state the session holds before the run."""
        call.hash = self._codec.digest(call.state)

    def changes(self, call: WorkflowState) -> dict[str, Any] | None:
        """Return what to merge into the session's state. None: the run has not changed it."""
        if self._codec.digest(call.state) == call.hash:
            return None
        return {self._codec.key: call.state[self._codec.key]}
