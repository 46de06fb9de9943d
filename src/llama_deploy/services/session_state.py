"""A workflow's own state, `ctx.store`, between the tasks of a session.

The session's state is a JSON object that belongs to the client. Under reserved keys it holds the states of
workflows, one key for each class of state, so that any service whose workflow has the same class of state
goes on where another ended, and tasks that end at the same time with states of other classes keep theirs.
Only the data in the store is carried: queues, waiting steps and results of a finished
run are not, so a session's state does not grow with its runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from workflows import Context, Workflow
from workflows.context.context_types import SerializedContext
from workflows.context.serializers import JsonSerializer
from workflows.context.state_store import DictState, decode_seed_state, infer_state_type

from llama_deploy.errors import SerializationError
from llama_deploy.services.payloads import qualified_name, to_json_value

logger = logging.getLogger(__name__)

STATE_PREFIX: Final = "__workflow_state__:"
"""How the reserved keys begin; the qualified name of the state's class follows."""
_LIVE_KEYS: Final = frozenset({"memory"})
"""Where llama_index's agents keep an object that the library's own snapshots leave out too."""


class StateCodec:
    """Turns the state of a workflow into JSON and back. It decodes only declared classes.

    Attributes:
        key: The key of the session's state under which the workflow's is.

    Args:
        workflow: Its state and its events, with the models in their fields, are declared.
        extra: Further classes that the state may hold.
    """

    def __init__(self, workflow: Workflow, extra: Iterable[type] = ()) -> None:
        self._workflow = workflow
        self._state_type = infer_state_type(workflow)
        self.key = STATE_PREFIX + qualified_name(self._state_type)
        declared = _with_models_inside([self._state_type, *workflow.events, *extra])
        self._serializer = JsonSerializer(allowed_types=declared)
        self._names = {f"{cls.__module__}.{cls.__name__}" for cls in declared}

    def restore(self, session_state: dict[str, Any]) -> Context | None:
        """Return a context with the state that the session holds, None if it holds none of this class.

        Raises:
            SerializationError: What it holds cannot be read.
        """
        encoded = session_state.get(self.key)
        if encoded is None:
            return None
        seed = {"store_type": "in_memory", "state_data": encoded}
        try:
            state = decode_seed_state(seed, self._serializer)
            if not isinstance(state, self._state_type):
                raise TypeError(f"it holds a {type(state).__name__}")  # noqa: TRY301 - one text for all
            snapshot = SerializedContext(state=seed).model_dump()
            return Context.from_dict(self._workflow, snapshot, serializer=self._serializer)
        except (ValueError, TypeError, ValidationError, AttributeError, KeyError) as exc:
            path = f"$[{self.key!r}]"
            raise SerializationError(
                f"{path} of the session's state is nothing that this service can read: {exc}",
                path=path,
            ) from exc

    async def capture(self, ctx: Context, session_state: dict[str, Any]) -> dict[str, Any]:
        """Return what to merge into the session's state after a run: its key, or nothing.

        Raises:
            SerializationError: The state holds something that cannot be carried; the path says where.
        """
        state: BaseModel = await ctx.store.get_state()
        encoded = self._encode(state)
        # A merge takes no key away, so a state that was emptied becomes null.
        return {self.key: encoded} if encoded is not None or self.key in session_state else {}

    def digest(self, session_state: dict[str, Any]) -> int | None:
        """Return a digest of the state that the session holds, None if it holds none of this class.

        It is the same in every process.
        """
        held = session_state.get(self.key)
        return None if held is None else digest(held)

    def _encode(self, state: BaseModel) -> Any:
        """Return the state in the form of the library's store, None for an empty one."""
        if not isinstance(state, DictState):
            return self._encode_value(state, path="$")
        encoded: dict[str, str] = {}
        for key, value in state.items():
            try:
                encoded[key] = self._encode_value(value, path=f"$.{key}")
            except SerializationError:
                if key not in _LIVE_KEYS:
                    raise
                logger.debug("the state's %r is not carried to the session's next task", key)
        return {"_data": encoded} if encoded else None

    def _encode_value(self, value: Any, *, path: str) -> str:
        self._check_declared(value, path=path)
        try:
            return self._serializer.serialize(value)
        except ValueError as exc:
            # The library does not say where; a second, slower walk does.
            _check_plain(value, path=path)
            raise SerializationError(f"{path} of the workflow's state: {exc}", path=path) from exc

    def _check_declared(self, value: Any, *, path: str) -> None:
        """Refuse what could be written but not read again."""
        if isinstance(value, dict):
            for key, child in value.items():
                self._check_declared(child, path=f"{path}.{key}")
        elif isinstance(value, list):
            for index, child in enumerate(value):
                self._check_declared(child, path=f"{path}[{index}]")
        elif isinstance(value, BaseModel) or hasattr(value, "class_name"):
            name = f"{type(value).__module__}.{type(value).__name__}"
            if name not in self._names:
                raise SerializationError(
                    f"{path} of the workflow's state is a {name}, which is not declared; annotate the steps "
                    "with Context[YourState], or name the class in `allowed_types` of the service",
                    path=path,
                )


def _check_plain(value: Any, *, path: str) -> None:
    """Raise for the innermost place that plain JSON cannot hold."""
    if isinstance(value, BaseModel):
        to_json_value(value, path=path)
    elif isinstance(value, dict):
        for key, child in value.items():
            _check_plain(child, path=f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            _check_plain(child, path=f"{path}[{index}]")
    elif not (value is None or isinstance(value, str | int | float | bool)):
        raise SerializationError(
            f"{path} of the workflow's state is a {qualified_name(type(value))}, which JSON cannot hold",
            path=path,
        )


def _with_models_inside(classes: Iterable[type]) -> list[type]:
    """Return the classes and all models that their fields are declared to hold."""
    found: dict[type, None] = {}
    waiting = list(classes)
    while waiting:
        cls = waiting.pop()
        if cls in found:
            continue
        found[cls] = None
        if issubclass(cls, BaseModel):
            for field in cls.model_fields.values():
                waiting.extend(
                    inner for inner in _classes_in(field.annotation) if issubclass(inner, BaseModel)
                )
    return list(found)


def _classes_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes_in(argument)


def digest(value: Any) -> int:
    """Return a number that is the same in every process for equal JSON values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())
