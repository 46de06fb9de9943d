"""A workflow's own state, `ctx.store`, as text: in a run's journal, and between the tasks of a session.

A session's state is a JSON object that belongs to the client. Reserved keys contain the states of workflows,
one key for each class of state. Any service whose workflow has the same class of state continues with it,
and tasks that end at the same time with states of different classes do not overwrite each other. Only the
data in the store is kept, not the queues, waiting steps and results of a finished run, so a session's state
does not grow with its runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, Final

from pydantic import BaseModel, Field, ValidationError
from workflows import Context, Workflow

from llama_deploy.codec import qualified_name
from llama_deploy.errors import SerializationError
from llama_deploy.services.values.left_out_keys import LeftOutKeys
from llama_deploy.services.values.shared_keys import SharedKeys, digest_of
from llama_deploy.services.values.unwritable import in_words
from llama_deploy.services.values.writing import Writing
from llama_deploy.types.state_keys import STATE_PREFIX, name_in
from llama_deploy.workflow_library import DictState, StateStore, empty_context, infer_state_type, state_seed

_STORE: Final = "ctx.store"


class WorkflowState(BaseModel):
    """A call of a workflow within a session."""

    hash: str | None = None
    """The signature of the workflow's own state as it was restored, or its digest if nothing is signed.

    It is the same in every process. None: no state.
    """
    state: dict[str, Any] = Field(default_factory=dict)
    """The session's state, the keys of services included."""
    run_kwargs: dict[str, Any] = Field(default_factory=dict)
    """The run arguments."""
    session_id: str | None = None
    origin: str | None = None
    """The session for which the state is signed, if this one was forked from it. None: `session_id`."""
    task_id: str | None = None
    attempt: int = 1
    """The number of the attempt at the task."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """The keys that earlier tasks of the session could not store, and why."""
    is_parallel: bool = False
    """Whether other tasks of the session may run at the same time."""
    bases: dict[str, str] = Field(default_factory=dict)
    """The digests of the values of `ctx.store` with which a run has begun, if it is parallel to others."""

    @property
    def signed_for(self) -> str | None:
        """The session for which the state is signed."""
        return self.origin or self.session_id


class StateCodec:
    """Converts the state of a workflow to text and back, and finds it in the state of a session.

    Attributes:
        key: The key of the workflow's state in the session's state.

    Args:
        workflow: The workflow.
        writing: Writes its values.
        strict: Whether a value that cannot be written is an error in `save`. Otherwise its key is left out.
    """

    def __init__(self, workflow: Workflow, writing: Writing, *, strict: bool = False) -> None:
        self._workflow = workflow
        self._writing = writing
        self._strict = strict
        self._state_type = infer_state_type(workflow)
        self.key = STATE_PREFIX + qualified_name(self._state_type)
        self._keys = SharedKeys(self.key, writing)
        self._missing = LeftOutKeys(self.key, workflow_name=workflow.workflow_name)

    @property
    def class_name(self) -> str:
        """The qualified name of the class of the workflow's state."""
        return qualified_name(self._state_type)

    async def encode(self, store: StateStore[Any], *, classes: dict[str, bool]) -> str | None:
        """Return the content of a store as text. None: it is empty.

        Args:
            store: The store.
            classes: Gets the users' classes in it, see `TypedJson.noting`.

        Raises:
            SerializationError: A value in the state cannot be written; the path says where.
        """
        state = await store.get_state()
        with self._writing.noting(classes):
            return self._text(state)

    def seed(self, text: str | None) -> dict[str, Any]:
        """Return the state in the form of the library's contexts; empty for None.

        Raises:
            SerializationError: It is not a state of this workflow.
        """
        if text is None:
            return {}
        state = self._writing.read(text)
        if not isinstance(state, self._state_type):
            raise SerializationError(
                f"this workflow's state is a {qualified_name(self._state_type)}, not a {type(state).__name__}"
            )
        return state_seed(text)

    async def load(self, call: WorkflowState) -> Context | None:
        """Return a context with the workflow's state. None: the session holds no state of this class.

        Raises:
            SerializationError: The state cannot be read, or was written in an older format.
            SignatureError: It was not signed with a key of this service.
        """
        self.note(call)
        path = f"$[{self.key!r}]"
        try:
            text = self._shared_text(call) if call.is_parallel else self._held_text(call, path)
            if text is None:
                return None
            return empty_context(self._workflow, state=self.seed(text), serializer=self._writing.serializer)
        except SerializationError as exc:
            if exc.path == path:
                raise
            raise SerializationError(
                f"this service cannot read {path} of the session's state: {exc}", path=path
            ) from exc

    def _held_text(self, call: WorkflowState, path: str) -> str | None:
        held = call.state.get(self.key)
        if held is None:
            return None
        if not isinstance(held, str) or not self._writing.is_sealed(held):
            raise SerializationError(
                f"{path} of the session's state was written by an older release; start a new session",
                path=path,
            )
        return self._writing.open(held, context=self._context(call))

    def _shared_text(self, call: WorkflowState) -> str | None:
        values = self._keys.read(call.state, session_id=call.signed_for)
        if not values:
            return None
        state = self._state_type()
        _set(state, values)
        return self._text(state)

    async def save(self, ctx: Context, call: WorkflowState) -> None:
        """Put the workflow's state after a run into the session's state.

        Raises:
            SerializationError: A value in the state cannot be written, and the codec is strict; the path says
                where. Or nothing of the state can be written.
        """
        state: BaseModel = await ctx.store.get_state()
        if call.is_parallel:
            self._save_keys(state, call)
            return
        left_out: dict[str, str] = {}
        try:
            text = self._text(state)
        except SerializationError:
            if self._strict:
                raise
            text, left_out = self._without_unwritable(state)
        self._note_missing(call, state, left_out)
        if text is not None:
            call.state[self.key] = self._writing.seal(text, context=self._context(call))
        elif self.key in call.state:
            # A merge cannot remove a key, so a state that was emptied becomes null.
            call.state[self.key] = None

    def _save_keys(self, state: BaseModel, call: WorkflowState) -> None:
        """Put the keys that a run has changed into the session's state."""
        texts: dict[str, str] = {}
        left_out: dict[str, str] = {}
        for key, value in _items(state):
            try:
                texts[key] = self._writing.write(value, path=f"{_STORE}[{key!r}]")
            except SerializationError as exc:
                if self._strict:
                    raise
                left_out[key] = in_words(exc)
        self._note_missing(call, state, left_out)
        call.state.update(
            self._keys.changes(
                texts, bases=call.bases, keep=left_out, session_id=call.signed_for, task_id=call.task_id
            )
        )

    def note(self, call: WorkflowState, *, bases: Mapping[str, str] | None = None) -> None:
        """Note which state the session holds before the run.

        Args:
            call: The call.
            bases: See `WorkflowState.bases`, for a run that goes on. None: it begins.
        """
        if call.is_parallel:
            begun_with = self._keys.bases(call.state) if bases is None else bases
            call.bases = {**self._defaults, **begun_with}
        call.hash = self._digest(call)
        call.left_out = self._missing.read(call.state)

    def changes(self, call: WorkflowState) -> dict[str, Any] | None:
        """Return what to merge into the session's state after a run. None: the run has not changed it."""
        changed: dict[str, Any] = {}
        if call.is_parallel:
            changed.update(self._changed_keys(call))
        elif self._digest(call) != call.hash:
            changed[self.key] = call.state[self.key]
        if self._missing.read(call.state) != call.left_out:
            changed[self._missing.key] = call.state[self._missing.key]
        return changed or None

    @cached_property
    def _defaults(self) -> dict[str, str]:
        """The digests of the values of a new state."""
        digests: dict[str, str] = {}
        with suppress(ValidationError):  # it has no defaults
            for key, value in _items(self._state_type()):
                with suppress(SerializationError):
                    digests[key] = digest_of(self._writing.write(value, path=_STORE))
        return digests

    def _changed_keys(self, call: WorkflowState) -> dict[str, Any]:
        """Return the keys that `_save_keys` has put into the session's state."""
        return {
            key: held
            for key, held in call.state.items()
            if (name := name_in(key, self.key)) is not None
            and held["task_id"] == call.task_id
            and held["digest"] != call.bases.get(name, "")
        }

    def _text(self, state: BaseModel) -> str | None:
        """Return a state as text. None: it is empty."""
        if isinstance(state, DictState) and not dict(state.items()):
            return None
        try:
            return self._writing.write(state, path=_STORE)
        except SerializationError:
            # Name the place as a key of the store.
            for key, value in _items(state):
                self._writing.write(value, path=f"{_STORE}[{key!r}]")
            raise

    def _without_unwritable(self, state: BaseModel) -> tuple[str | None, dict[str, str]]:
        """Return a state as text without the keys that cannot be written, and why each of them cannot.

        A field of a typed state then gets its default. If the rest cannot be written either, nothing is.
        """
        left_out: dict[str, str] = {}
        for key, value in _items(state):
            try:
                self._writing.write(value, path=f"{_STORE}[{key!r}]")
            except SerializationError as exc:
                left_out[key] = in_words(exc)
        kept = _without(state, left_out.keys())
        try:
            return self._text(kept), left_out
        except SerializationError as exc:
            return None, {key: left_out.get(key, in_words(exc)) for key, _ in _items(state)}

    def _note_missing(self, call: WorkflowState, state: BaseModel, left_out: Mapping[str, str]) -> None:
        present = {key for key, _ in _items(state)}
        self._missing.note(call.state, left_out, earlier=call.left_out, present=present)

    def _digest(self, call: WorkflowState) -> str | None:
        """Return what identifies the state that the session holds. None: it holds none.

        This is the state's signature if the service signs, else a digest.
        """
        held = call.state.get(self.key)
        if not isinstance(held, str):
            return None
        return self._writing.signature(held) or hashlib.blake2b(held.encode(), digest_size=12).hexdigest()

    def _context(self, call: WorkflowState) -> str:
        return f"session:{call.signed_for or ''}:{self.key}"


def _without(state: BaseModel, keys: Collection[str]) -> BaseModel:
    """Return a copy of a state without keys. It may be incomplete, and is only written."""
    if isinstance(state, DictState):
        rest = DictState()
        for key, value in state.items():
            if key not in keys:
                rest[key] = value
        return rest
    copy = state.model_copy()
    for key in keys:
        vars(copy).pop(key, None)
        if copy.model_extra is not None:
            copy.model_extra.pop(key, None)
    return copy


def _set(state: BaseModel, values: Mapping[str, Any]) -> None:
    """Set keys of a state as they were stored, without validation."""
    for key, value in values.items():
        if isinstance(state, DictState):
            state[key] = value
        elif key in type(state).model_fields:
            vars(state)[key] = value
            state.model_fields_set.add(key)
        elif state.model_extra is not None:
            state.model_extra[key] = value


def _items(state: BaseModel) -> Iterable[tuple[str, Any]]:
    """Return the keys of a state with their values."""
    return state.items() if isinstance(state, DictState) else state
