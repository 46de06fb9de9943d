"""Values that cannot be written, in words for the authors of workflows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast
from weakref import ref

from llama_deploy.errors import MissingStateError, SerializationError
from llama_deploy.workflow_library import StateStore

_MISSING: Final = object()


def in_words(error: SerializationError) -> str:
    """Return which value cannot be written, such as `ctx.store['llm'] holds an OpenAI`."""
    if error.holds is None:
        return str(error).partition(";")[0]
    return f"{error.path} holds {_article(error.holds)} {error.holds}"


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"


def explain_missing(store: StateStore[Any], left_out: Mapping[str, str]) -> None:
    """Let `get` of a run's store say why a key is missing that an earlier task of the session has set.

    Args:
        store: The store. It is changed.
        left_out: The keys that could not be stored, and why.
    """
    if "get" in vars(store):
        return
    original, this = type(store).get, ref(store)

    async def explained(path: str, default: Any = ...) -> Any:
        store = cast("StateStore[Any]", this())  # it is being called
        key = path.partition(".")[0]
        if default is ... and key in left_out and await original(store, key, _MISSING) is _MISSING:
            raise MissingStateError(
                f"ctx.store[{key!r}] is missing in this task: {left_out[key]}, which cannot be stored between"
                " the tasks of a session. Create it in each task that needs it, or store what it is made from"
            )
        return await original(store, path, default)

    vars(store)["get"] = explained
