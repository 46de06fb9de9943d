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
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel

from llama_deploy.errors import SerializationError
from llama_deploy.portability.json_parts import SCALARS, name_of, parts_of, step_to

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
_ITERATES: Final = "which is an iterator, and is neither sent nor stored: pass a list of its items"
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
_OF_PEOPLE: Final = ("passphrase", "passwd", "password")
"""Secrets that people have too. Objects with these act only if they also have an address, or connect."""
_ADDRESSES: Final = frozenset(
    {"apibase", "apiurl", "baseurl", "database", "dsn", "endpoint", "host", "hostname", "port", "server"}
    | {"uri", "url"}
)
_SETTINGS: Final = "pydantic_settings.main.BaseSettings"
_EVENT: Final = "workflows.events.Event"
_READS: Final = ("to_", "from_", "as_", "is_", "has_", "get_", "class_name")
"""How the names of methods begin that data may have."""
_CONNECTS: Final = frozenset({"__call__", "__enter__", "__aenter__"})
_ANY_ARGUMENTS: Final = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
_DECORATORS: Final = (
    "validators",
    "field_validators",
    "root_validators",
    "model_validators",
    "field_serializers",
    "model_serializers",
    "computed_fields",
)


def check_portable(value: object, *, path: str, as_text: bool = False) -> None:
    """Check that a value may leave the process.

    Args:
        value: The value.
        path: The place of the value, for errors.
        as_text: Whether only its text leaves, which code and iterators may.

    Raises:
        SerializationError: It holds an object that must not; the text says where, which class the object has,
            and what to do. It never shows the object.
    """
    waiting: list[tuple[str, object]] = [(path, value)]
    seen: dict[int, object] = {}
    while waiting:
        place, item = waiting.pop()
        if type(item) in SCALARS or id(item) in seen:
            continue  # the latter: a circle, or an object in two places
        seen[id(item)] = item
        cls: type = type(item)
        reason = reason_against(item) if may_be_live(cls) else None
        if reason is not None and not (as_text and reason in (_RUNS, _ITERATES)):
            raise SerializationError(f"{place} is a {name_of(cls)}, {reason}", path=place, holds=cls.__name__)
        parts = _shown(item) if as_text else parts_of(item)
        if isinstance(parts, Mapping):
            if not SCALARS.issuperset(map(type, parts)):
                waiting += [(place + step_to(key), key) for key in parts if type(key) not in SCALARS]
            if not SCALARS.issuperset(map(type, parts.values())):
                found = [(key, part) for key, part in parts.items() if type(part) not in SCALARS]
                waiting += [(place + step_to(key), part) for key, part in found]
        elif not SCALARS.issuperset(map(type, parts)):
            waiting += [(f"{place}[{at}]", part) for at, part in enumerate(parts)]


def _shown(value: Any) -> Iterable[Any]:
    """Return the parts of a value that its text shows, which are more than its JSON has."""
    cls: type = type(value)
    if isinstance(value, BaseModel | types.SimpleNamespace):
        return vars(value)
    if isinstance(value, BaseException):
        return value.args
    if isinstance(value, functools.partial):
        return (*value.args, *value.keywords.values())
    if fields := getattr(cls, _ATTRS, None):
        return {field.name: getattr(value, field.name, None) for field in fields}
    return parts_of(value)


@functools.lru_cache(maxsize=4096)
def may_be_live(cls: type[Any]) -> bool:
    """Return whether `reason_against` has to be asked about the objects of a class."""
    return rejection(cls) is not None or bool(secret_fields(cls))


def reason_against(value: object) -> str | None:
    """Return why an object must not leave the process, whatever it contains. None: it may.

    The text follows the name of the class.
    """
    cls = type(value)
    reason = rejection(cls)
    if reason is _SENSITIVE:
        return reason if _revealed(value) else None
    if reason is not None:
        return reason
    return next(
        (rejection_of_secret(name) for name in secret_fields(cls) if is_filled(getattr(value, name, None))),
        None,
    )


def rejection(cls: type) -> str | None:
    """Return why objects of a class must not leave the process. None: they may.

    The text follows the name of the class.
    """
    return _rejection(cls)


@functools.lru_cache(maxsize=4096)
def _rejection(cls: type[Any]) -> str | None:
    for base in cls.__mro__:
        if (reason := _LIVE.get(name_of(base))) is not None:
            return reason
    if hasattr(cls, "get_secret_value"):
        return _SENSITIVE
    if is_code(cls) or issubclass(cls, io.IOBase):
        return _RUNS
    if hasattr(cls, "__next__") or hasattr(cls, "__anext__"):
        is_data = issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls)
        return None if is_data else _ITERATES
    return None


def is_code(cls: type) -> bool:
    """Return whether the objects of a class are functions, modules or the like."""
    return issubclass(cls, _CODE)


def secret_fields(cls: type) -> frozenset[str]:
    """Return the fields of a class that hold secrets, if it is a class whose objects act with them.

    A model that is data may have a field with such a name; the user has then chosen to send it.
    """
    return _secret_fields(cls)


@functools.lru_cache(maxsize=4096)
def _secret_fields(cls: type[Any]) -> frozenset[str]:
    fields = {name: _bare(name) for name in _fields_of(cls)}
    secret = frozenset(
        name for name, bare in fields.items() if bare == "token" or bare.endswith(_SECRET_NAMES)
    )
    bases = {name_of(base) for base in cls.__mro__}
    if not secret or _EVENT in bases:
        return frozenset()
    # People have passwords too: a user with the method `verify(password)` is data.
    is_of_program = any(not fields[name].endswith(_OF_PEOPLE) for name in secret)
    actions = {action for base in cls.__mro__ for action in _actions_of(base)}
    connects = "connects" in actions or (actions and not _ADDRESSES.isdisjoint(fields.values()))
    return secret if _SETTINGS in bases or connects or (actions and is_of_program) else frozenset()


def rejection_of_secret(name: str) -> str:
    """Return why an object with a secret in a field is not sent or stored.

    The text follows the name of the class.
    """
    return (
        f"which has the secret {name!r} and methods that may use it, and is neither sent nor stored: "
        f"{_ADVICE}. If it is only data, pass a dict of its fields"
    )


def is_filled(value: object) -> bool:
    """Return whether a secret field holds a secret: a text or bytes that are not empty."""
    return isinstance(value, str | bytes) and bool(value)


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


def _bare(name: str) -> str:
    return name.replace("_", "").lower()


def _actions_of(cls: type) -> Iterator[Literal["acts", "connects"]]:
    """Yield what the methods in the body of a class do, other than to read or check its data."""
    if cls in (object, BaseModel) or name_of(cls).startswith(("pydantic.", "typing.", "abc.")):
        return
    decorators = getattr(cls, "__pydantic_decorators__", None)
    checks = {name for kind in _DECORATORS for name in getattr(decorators, kind, ())}
    for name, member in vars(cls).items():
        if not isinstance(member, types.FunctionType) or name in checks or hasattr(BaseModel, name):
            continue
        if name in _CONNECTS:
            yield "connects"
        elif not name.startswith(("_", *_READS)):
            code = member.__code__
            if code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
                yield "connects"
            elif code.co_argcount + code.co_kwonlyargcount > 1 or code.co_flags & _ANY_ARGUMENTS:
                yield "acts"
