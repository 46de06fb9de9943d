"""A workflow's own state, `ctx.store`, as text: within a run's journal, and between the tasks of a session.

The session's state is a JSON object that belongs to the client. Under reserved keys it holds the states of
workflows, one key for each class of state, so that any service whose workflow has the same class of state
goes on where another ended, and tasks that end at the same time with states of other classes keep theirs.
Only the data in the store is carried: queues, waiting steps and results of a finished
run are not, so a session's state does not grow with its runs.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from pydantic import BaseModel
from workflows import Context, Workflow

from llama_deploy.codec import qualified_name
from llama_deploy.errors import SerializationError
from llama_deploy.services.values.writing import Writing
from llama_deploy.workflow_library import DictState, StateStore, infer_state_type, state_seed

STATE_PREFIX: Final = "__workflow_state__:"
"""How the reserved keys begin; the qualified name of the state's class follows."""


class StateCodec:
    """Turns the state of a workflow into text and back.

    Attributes:
        key: The key of the session's state under which the workflow's is.

    Args:
        workflow: The workflow.
        writing: How its values are written.
    """

    def __init__(self, workflow: Workflow, writing: Writing) -> None:
        self._workflow = workflow
        self._writing = writing
        self._state_type = infer_state_type(workflow)
        self.key = STATE_PREFIX + qualified_name(self._state_type)

    async def encode(self, store: StateStore[Any]) -> str | None:
        """Return what a store holds as text, None if it is empty.

        Raises:
            SerializationError: The state holds something that cannot be carried; the path says where.
        """
        state: BaseModel = await store.get_state()
        if isinstance(state, DictState) and not dict(state.items()):
            return None
        return self._writing.write(state, path="$")

    def seed(self, text: str | None) -> dict[str, Any]:
        """Return the state in the form in which the library's contexts hold it; empty for None.

        Raises:
            SerializationError: It is no state of this workflow.
        """
        if text is None:
            return {}
        state = self._writing.read(text)
        if not isinstance(state, self._state_type):
            raise SerializationError(
                f"this workflow's state is a {qualified_name(self._state_type)}, not a {type(state).__name__}"
            )
        return state_seed(text)

    def restore(self, session_state: dict[str, Any], *, session_id: str | None) -> Context | None:
        """Return a context with the state that the session holds, None if it holds none of this class.

        Raises:
            SerializationError: What it holds cannot be read, or was written by a release with another form.
            SignatureError: It was not written by a service with a key of this one.
        """
        held = session_state.get(self.key)
        if held is None:
            return None
        path = f"$[{self.key!r}]"
        if not isinstance(held, str) or not self._writing.is_sealed(held):
            raise SerializationError(
                f"{path} of the session's state was written by an older release; begin a new session",
                path=path,
            )
        try:
            seed = self.seed(self._writing.open(held, context=self._context(session_id)))
            return self._writing.context(self._workflow, state=seed)
        except SerializationError as exc:
            raise SerializationError(
                f"{path} of the session's state is nothing that this service can read: {exc}", path=path
            ) from exc

    async def capture(
        self, ctx: Context, session_state: dict[str, Any], *, session_id: str | None
    ) -> dict[str, Any]:
        """Return what to merge into the session's state after a run: its key, or nothing.

        Raises:
            SerializationError: The state holds something that cannot be carried; the path says where.
        """
        text = await self.encode(ctx.store)
        if text is not None:
            return {self.key: self._writing.seal(text, context=self._context(session_id))}
        # A merge takes no key away, so a state that was emptied becomes null.
        return {self.key: None} if self.key in session_state else {}

    def digest(self, session_state: dict[str, Any]) -> str | None:
        """Return what tells the state that the session holds from others, None if it holds none.

        It is the state's signature if the service has a key to sign with, else a digest.
        """
        held = session_state.get(self.key)
        if not isinstance(held, str):
            return None
        return self._writing.signature(held) or hashlib.blake2b(held.encode(), digest_size=12).hexdigest()

    def _context(self, session_id: str | None) -> str:
        return f"session:{session_id or ''}:{self.key}"
