"""Objects that must not leave their process: those with connections, with code, and with secrets.

Such an object looks like data if it is a pydantic model or a dataclass: the `api_key` of an LLM would be
written into the database as the text that it is. This package does not need the libraries that define them
and never imports them. It finds their classes by name.

A text that is given as itself, such as the argument `api_key="..."` or the field of an event, is data that
the user has chosen.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import types
from collections import UserList, deque
from collections.abc import Iterable, Iterator, Mapping, MappingView
from typing import Any, Final

from pydantic import BaseModel

from llama_deploy.errors import SerializationError

_ADVICE: Final = (
    "create it where the workflow runs, in `__init__`, in a `Resource` or once for the module, with keys "
    "from the environment of the worker, and pass what it is made from, such as the name of the model"
)
_CONNECTED: Final = f"which holds connections and keys, and is neither sent nor stored: {_ADVICE}"
_SENSITIVE: Final = (
    "which is neither sent nor stored: let the workflow read it from the environment of the worker, and pass "
    "the name under which it is found there"
)
_RUNS: Final = f"which is code or a running operation, and is neither sent nor stored: {_ADVICE}"
_LIVE: Final[Mapping[str, str]] = {
    "llama_index.core.memory.memory.Memory": (
        "whose messages are in a database and not in the object: use a `ChatMemoryBuffer`, or keep only "
        "its `session_id` and create it in each step, with an `async_database_uri` that all instances reach"
    ),
    **dict.fromkeys(
        (
            # What calls others in llama_index: LLMs, embeddings, tools, retrievers, query engines, parsers.
            "llama_index_instrumentation.DispatcherSpanMixin",
            "llama_index.core.base.llms.base.BaseLLM",
            "llama_index.core.base.embeddings.base.BaseEmbedding",
            "llama_index.core.callbacks.base.CallbackManager",
            "llama_index.core.graph_stores.types.PropertyGraphStore",
            "llama_index.core.indices.base.BaseIndex",
            "llama_index.core.ingestion.pipeline.IngestionPipeline",
            "llama_index.core.prompts.mixin.PromptMixin",
            "llama_index.core.readers.base.BaseReader",
            "llama_index.core.schema.TransformComponent",
            "llama_index.core.storage.storage_context.StorageContext",
            "llama_index.core.tools.tool_spec.base.BaseToolSpec",
            "llama_index.core.tools.types.BaseTool",
            "llama_index.core.vector_stores.types.BasePydanticVectorStore",
            "langchain_core.runnables.base.Runnable",
            "langchain_core.embeddings.embeddings.Embeddings",
            "workflows.context.context.Context",
            "workflows.handler.WorkflowHandler",
            "workflows.workflow.Workflow",
        ),
        _CONNECTED,
    ),
}
"""Classes, by name, whose objects only look like data. Their subclasses are included."""

_CODE: Final = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    types.CoroutineType,
    functools.partial,
)
_PLAIN: Final = frozenset({str, int, float, bool, type(None), bytes})
_SEQUENCES: Final = frozenset({list, tuple, set, frozenset})
_CONTAINERS: Final = _SEQUENCES | {dict}
_ITERABLES: Final = (list, tuple, set, frozenset, deque, UserList, MappingView)
_LONGEST: Final = 10**60
_ATTRS: Final = "__attrs_attrs__"
"""What classes of the package attrs have: their fields."""
_SECRET_NAMES: Final = (
    "apikey",
    "accesskey",
    "accesskeyid",
    "authorization",
    "connectionstring",
    "credential",
    "credentials",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "secret",
    "secretkey",
    "secretaccesskey",
    "accesstoken",
    "apitoken",
    "authtoken",
    "bearertoken",
    "refreshtoken",
    "sessiontoken",
)
"""How the names of secret fields end, without underscores. `token` alone is one only as the whole name."""
_SETTINGS: Final = "pydantic_settings.main.BaseSettings"
_EVENT: Final = "workflows.events.Event"
_READS: Final = ("to_", "from_", "as_", "is_", "has_", "get_", "class_name")
"""How the names of methods begin that data may have."""
_ACTS: Final = frozenset({"__call__", "__enter__", "__aenter__"})
_DECORATORS: Final = (
    "validators",
    "field_validators",
    "root_validators",
    "model_validators",
    "field_serializers",
    "model_serializers",
    "computed_fields",
)
_UNDECLARED: Final = "_data"
"""The private attribute with the undeclared fields of events."""


def check_portable(value: object, *, path: str) -> None:
    """Check that a value may leave the process.

    Args:
        value: The value.
        path: The place of the value, for errors.

    Raises:
        SerializationError: It holds an object that must not; the text says where, which class the object has,
            and what to do. It never shows the object.
    """
    found = find_live(value, path=path)
    if found is not None:
        raise found


def find_live(value: object, *, path: str) -> SerializationError | None:
    """Return the error for an object in a value that must not leave the process. None: there is none.

    Args:
        value: The value.
        path: The place of the value, for errors.
    """
    if not _holds_live(value):
        return None
    return next((fault for place, item in _places(value, path) if (fault := _fault(item, place))), None)


def check_text(value: object, *, path: str) -> None:
    """Check that the text of a value, `str(value)`, may leave the process.

    That of a file or a function may. What a class of the user writes into its own text is not looked at.

    Args:
        value: The value.
        path: The place of the value, for errors.

    Raises:
        SerializationError: The text would show an object with connections or secrets, see `check_portable`.
    """
    for place, item in _places(value, path):
        if rejection(type(item)) is not _RUNS and (fault := _fault(item, place)) is not None:
            raise fault


def _places(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield a value and what it contains, at any depth, with their places; no object twice."""
    waiting: list[tuple[str, object]] = [(path, value)]
    seen: set[int] = set()
    while waiting:
        place, item = waiting.pop()
        if type(item) in _PLAIN or id(item) in seen:
            continue  # the latter: a circle, or an object in two places
        seen.add(id(item))
        yield place, item
        step = _step_to_item if isinstance(item, _ITERABLES) else _step_to
        waiting += [(place + step(key), child) for key, child in _contents(item).items()]
        waiting += [(place + step(key), key) for key in _keys(item)]


def _holds_live(value: object) -> bool:
    """Return whether `find_live` finds something; faster, because nearly always it does not."""
    waiting, seen = [value], set[int]()
    while waiting:
        item = waiting.pop()
        cls = type(item)
        if cls in _PLAIN or id(item) in seen:
            continue
        seen.add(id(item))
        if cls not in _CONTAINERS and _fault(item, "") is not None:
            return True
        waiting += _items(item) if cls in _SEQUENCES else _contents(item).values()
        waiting += _keys(item)
    return False


def rejection(cls: type) -> str | None:
    """Return why objects of a class must not leave the process. None: they may.

    The text follows the name of the class.
    """
    return _rejection(cls)


@functools.lru_cache(maxsize=4096)
def _rejection(cls: type[Any]) -> str | None:
    for base in cls.__mro__:
        if (reason := _LIVE.get(_name_of(base))) is not None:
            return reason
    if hasattr(cls, "get_secret_value"):
        return _SENSITIVE
    if issubclass(cls, _CODE) or (issubclass(cls, Iterator) and not issubclass(cls, BaseModel)):
        return _RUNS
    if issubclass(cls, io.IOBase) or hasattr(cls, "__anext__"):
        return _RUNS
    return None


def secret_fields(cls: type) -> frozenset[str]:
    """Return the fields of a class that hold secrets, if it is a class whose objects act with them.

    A model that is data may have a field with such a name; the user has then chosen to send it.
    """
    return _secret_fields(cls)


@functools.lru_cache(maxsize=4096)
def _secret_fields(cls: type[Any]) -> frozenset[str]:
    fields = _fields_of(cls)
    named = frozenset(name for name in fields if _is_secret_name(name))
    if not named or any(_name_of(base) == _EVENT for base in cls.__mro__):
        return frozenset()
    acts = any(_name_of(base) == _SETTINGS for base in cls.__mro__) or any(map(_acts, cls.__mro__))
    return named if acts else frozenset()


def rejection_of_secret(name: str) -> str:
    """Return why the secret in a field is not sent or stored. The text follows the name of the place."""
    return f"holds the secret {name!r} of an object with connections, {_CONNECTED.partition(', and ')[2]}"


def is_filled(value: object) -> bool:
    """Return whether a secret field holds a secret: a text or bytes that are not empty."""
    return isinstance(value, str | bytes) and bool(value)


def _items(value: Any) -> Iterable[object]:
    return () if _PLAIN.issuperset(map(type, value)) else value


def _contents(value: Any) -> Mapping[Any, object]:
    """Return what a value contains, by the numbers or names of its places."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, _ITERABLES):
        return dict(enumerate(_items(value)))
    return _held(value) if _has_fields(value) else _shown(value)


def _shown(value: Any) -> Mapping[str, object]:
    """Return what an object contains that is no container, model or dataclass, but shows it in its text."""
    cls: type = type(value)
    if isinstance(value, BaseException | functools.partial):
        return {"args": value.args, **getattr(value, "keywords", {})}
    if isinstance(value, types.SimpleNamespace):
        return vars(value)
    if _name_of(cls) == "numpy.ndarray" and value.dtype.hasobject:
        return {"items": value.tolist()}
    return {each.name: getattr(value, each.name, None) for each in getattr(cls, _ATTRS, ())}


def _keys(value: object) -> Iterable[object]:
    """Return the keys of a mapping that may contain something."""
    if not isinstance(value, Mapping) or _PLAIN.issuperset(map(type, value)):
        return ()
    return [key for key in value if type(key) not in _PLAIN]


def _fault(value: object, path: str) -> SerializationError | None:
    """Return why an object must not leave the process, whatever it contains."""
    cls = type(value)
    reason = rejection(cls)
    if reason is _SENSITIVE:
        return _error(path, cls, reason) if _revealed(value) else None
    if reason is not None:
        return _error(path, cls, reason)
    for name in secret_fields(cls):
        if is_filled(getattr(value, name, None)):
            return _error(path, cls, f"and {rejection_of_secret(name)}")
    return None


def _error(path: str, cls: type, reason: str) -> SerializationError:
    return SerializationError(f"{path} is a {_name_of(cls)}, {reason}", path=path, holds=cls.__name__)


def _has_fields(value: object) -> bool:
    return isinstance(value, BaseModel) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _held(value: Any) -> Mapping[str, object]:
    """Return the fields of a model or dataclass that are sent, with their values."""
    cls: type = type(value)
    if not isinstance(value, BaseModel):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    held = vars(value)
    if excluded := _excluded(cls):
        held = {name: item for name, item in held.items() if name not in excluded}
    undeclared = (value.__pydantic_private__ or {}).get(_UNDECLARED)
    if value.__pydantic_extra__ or undeclared:
        held = {**held, **(value.__pydantic_extra__ or {})}
        if isinstance(undeclared, dict):
            held |= undeclared
    return held


@functools.lru_cache(maxsize=4096)
def _excluded(cls: type[Any]) -> frozenset[str]:
    return frozenset(name for name, field in cls.model_fields.items() if field.exclude)


def _step_to(key: object) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f".{key}"
    # The text of an object may show what it holds, and a long integer has none.
    is_short = type(key) in _PLAIN and not (type(key) is int and abs(key) > _LONGEST)
    return f"[{str(key)[:60]!r}]" if is_short else f"[a {type(key).__name__}]"


def _step_to_item(number: object) -> str:
    return f"[{number}]"


def _revealed(value: Any) -> object:
    try:
        return value.get_secret_value()
    except Exception:  # noqa: BLE001 - code of any class; when in doubt it is a secret
        return True


def _fields_of(cls: type) -> frozenset[str]:
    if issubclass(cls, BaseModel):
        return frozenset(name for name, field in cls.model_fields.items() if not field.exclude)
    return (
        frozenset(field.name for field in dataclasses.fields(cls))
        if dataclasses.is_dataclass(cls)
        else frozenset()
    )


def _is_secret_name(name: str) -> bool:
    plain = name.replace("_", "").lower()
    return plain == "token" or plain.endswith(_SECRET_NAMES)


def _acts(cls: type) -> bool:
    """Return whether the body of a class defines methods that do more than to read or check its data."""
    if cls in (object, BaseModel) or _name_of(cls).startswith(("pydantic.", "typing.", "abc.")):
        return False
    decorators = getattr(cls, "__pydantic_decorators__", None)
    checks = {name for kind in _DECORATORS for name in getattr(decorators, kind, ())}
    for name, member in vars(cls).items():
        if not isinstance(member, types.FunctionType) or name in checks or hasattr(BaseModel, name):
            continue
        if name in _ACTS or (not name.startswith(("_", *_READS)) and _takes_or_waits(member)):
            return True
    return False


def _takes_or_waits(method: types.FunctionType) -> bool:
    code = method.__code__
    arguments = code.co_argcount + code.co_kwonlyargcount
    others = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    return arguments > 1 or bool(code.co_flags & others)


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
