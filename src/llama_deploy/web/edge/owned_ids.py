"""The one place where the ids in requests become keys: between the parsing of a request and its endpoint."""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol, get_type_hints

from fastapi import Request

from llama_deploy.errors import InvalidRequestError
from llama_deploy.types.callers import ANONYMOUS, Caller
from llama_deploy.types.owners import Owner
from llama_deploy.web.edge.access_table import IdKind, Requirement
from llama_deploy.web.edge.caller_state import caller_of

Endpoint = Callable[..., Awaitable[Any]]

_REQUEST: Final = "owned_request"
_PATH_IDS: Final = {
    "task_id": IdKind.TASK,
    "session_id": IdKind.SESSION,
    "question_id": IdKind.QUESTION,
}
"""The parameters of paths that are ids of what belongs to somebody."""


class OwnedRows(Protocol):
    """Knows to whom rows belong."""

    async def check(
        self, owner: Owner, keys: Mapping[IdKind, Collection[str]], *, existing: Collection[str] = ()
    ) -> None:
        """Do nothing if all of these rows that exist belong to an owner.

        Args:
            owner: To whom they must belong.
            keys: The keys of the rows.
            existing: Those of them that must exist, if the owner is a subject. Otherwise another subject may
                create them before the request is served.

        Raises:
            NotFoundError: One belongs to somebody else, with the same text as for one that does not exist.
        """
        ...


class NoOwnedRows:
    """For servers that have no routes about what belongs to somebody."""

    async def check(
        self, owner: Owner, keys: Mapping[IdKind, Collection[str]], *, existing: Collection[str] = ()
    ) -> None:
        """See `OwnedRows`."""


def ids_of(path: str, needed: Requirement) -> dict[str, IdKind]:
    """Return the ids in the requests of a route: the names of parameters, with dots before their fields."""
    in_path = {name: kind for name, kind in _PATH_IDS.items() if f"{{{name}}}" in path}
    return {**in_path, **needed.ids}


def existing_in(path: str, needed: Requirement) -> set[str]:
    """Return the parameters of the path of a route that are ids of what must exist."""
    return set() if needed.may_be_missing else {name for name in _PATH_IDS if f"{{{name}}}" in path}


def with_keys(
    endpoint: Endpoint, ids: Mapping[str, IdKind], rows: OwnedRows, *, existing: Collection[str] = ()
) -> Endpoint:
    """Return an endpoint that gets keys where the request has ids.

    Args:
        endpoint: Answers requests.
        ids: The ids, as `ids_of` returns them.
        rows: Refuses ids of others that the key does not.
        existing: Those of the ids that are of what must exist, see `existing_in`.

    Raises:
        TypeError: The endpoint has no such parameter, or cannot be awaited.
    """
    if hasattr(endpoint, _REQUEST) or not ids:  # the framework builds included routes twice
        return endpoint
    signature = inspect.signature(endpoint)
    if unknown := [name for name in ids if name.partition(".")[0] not in signature.parameters]:
        raise TypeError(f"{endpoint} has no parameter {unknown[0]}, which the access table names")
    if not inspect.iscoroutinefunction(endpoint):
        raise TypeError(f"{endpoint} must be asynchronous, because ids of its requests are looked up")
    places = [(name.split("."), kind) for name, kind in ids.items()]
    # The framework passes the request once.
    hints = get_type_hints(endpoint)
    own = next((name for name in signature.parameters if hints.get(name) is Request), None)

    @functools.wraps(endpoint)
    async def keyed(**values: Any) -> Any:
        request: Request = values.pop(_REQUEST) if own is None else values[own]
        caller = caller_of(request.scope)
        if caller is not ANONYMOUS:
            values = await _keyed(values, places, caller, rows, existing)
        return await endpoint(**values)

    if own is None:
        request = inspect.Parameter(_REQUEST, inspect.Parameter.KEYWORD_ONLY, annotation=Request)
        parameters = [*signature.parameters.values(), request]
        keyed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    setattr(keyed, _REQUEST, True)
    return keyed


async def _keyed(
    values: dict[str, Any],
    places: Sequence[tuple[Sequence[str], IdKind]],
    caller: Caller,
    rows: OwnedRows,
    existing: Collection[str],
) -> dict[str, Any]:
    """Return the arguments of an endpoint with keys in these places, after a look at whose rows they are."""
    owner = caller.owner
    found: dict[IdKind, list[str]] = defaultdict(list)
    for (name, *fields), kind in places:
        values[name] = _with_key(values[name], fields, kind, owner, found)
    if owner.subject is not None or IdKind.QUESTION in found:
        await rows.check(owner, found, existing={values[name] for name in existing})
    return values


def _with_key(
    value: Any, fields: Sequence[str], kind: IdKind, owner: Owner, found: dict[IdKind, list[str]]
) -> Any:
    """Return a value with the key in place of the id, which stands in it or in a field of it."""
    if value is None or value == "":
        return value
    if fields:
        inner = getattr(value, fields[0])
        key = _with_key(inner, fields[1:], kind, owner, found)
        return value if key is inner or key == inner else value.model_copy(update={fields[0]: key})
    if kind is IdKind.QUESTION:  # unique among all tenants, and looked up
        found[kind].append(value)
        return value
    try:
        key = owner.key_of(value)
    except ValueError as exc:
        raise InvalidRequestError(str(exc)) from exc
    found[kind].append(key)
    return key
