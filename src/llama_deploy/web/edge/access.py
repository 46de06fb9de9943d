"""What a caller may do: checked by the application and the shortcuts, which know the route of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeAlias

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import compile_path
from starlette.types import Scope

from llama_deploy.errors import AuthenticationError, PermissionDeniedError
from llama_deploy.types.callers import Caller
from llama_deploy.web.edge.access_table import AccessTable, IdKind, Requirement, Tenancy
from llama_deploy.web.edge.caller_state import CALLER
from llama_deploy.web.edge.owned_ids import NoOwnedRows, OwnedRows, existing_in, ids_of, with_keys

NO_KEY: Final = (
    "this server requires a key: send it as `Authorization: Bearer KEY`; clients and llamactl take it from"
    " LLAMA_DEPLOY_API_KEY"
)


BodyCheck: TypeAlias = Callable[[Request], Awaitable[None]]
"""Raises an error if the body of a request must not be read."""


_NO_CHECKS: Final[Mapping[str, BodyCheck]] = MappingProxyType({})


class GuardedRoute(APIRoute):
    """A route that only answers callers who may use it. They are checked before the body is read.

    The ids in its requests reach its endpoint as keys.
    """

    table: ClassVar[AccessTable]
    rows: ClassVar[OwnedRows]
    body_checks: ClassVar[Mapping[str, BodyCheck]] = _NO_CHECKS

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Build a route; see `APIRoute`.

        Raises:
            TypeError: It has no entry in the table, or one that names a parameter that the endpoint has not.
        """
        ids: dict[str, IdKind] = {}
        existing: set[str] = set()
        _, named, _ = compile_path(path)
        for method in options.get("methods") or ["GET"]:
            needed = requirement_of(self.table, method.upper(), named)
            ids |= ids_of(named, needed)
            existing |= existing_in(named, needed)
        super().__init__(path, with_keys(endpoint, ids, self.rows, existing=existing), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of the route, behind the check.

        Raises:
            TypeError: The route has no entry in the table.
        """
        handle = super().get_route_handler()
        needed = {
            method: requirement_of(self.table, method, self.path_format) for method in self.methods or ()
        }
        path = self.path_format
        check_body = self.body_checks.get(path)

        async def guarded(request: Request) -> Response:
            method = request.scope["method"]
            check_access(request.scope, needed[method], method, path)
            if check_body is not None:
                await check_body(request)
            return await handle(request)

        return guarded


def new_router(
    table: AccessTable,
    rows: OwnedRows | None = None,
    *,
    body_checks: Mapping[str, BodyCheck] = _NO_CHECKS,
    **options: Any,
) -> APIRouter:
    """Return a router whose routes are guarded.

    Args:
        table: What each route needs. Adding a route without an entry raises `TypeError`.
        rows: Knows to whom the rows belong that requests name. None: they name none.
        body_checks: By path, what is checked before the body of a request is read, beside the caller: for
            open routes, whose bodies would otherwise take the room that known callers share.
        **options: Further arguments of `APIRouter`.
    """
    attributes = {
        "table": table,
        "rows": NoOwnedRows() if rows is None else rows,
        "body_checks": body_checks,
    }
    route_class = type("TabledRoute", (GuardedRoute,), attributes)
    return APIRouter(route_class=route_class, **options)


def requirement_of(table: AccessTable, method: str, path: str) -> Requirement:
    """Return what a route needs.

    Raises:
        TypeError: It has no entry.
    """
    needed = table.get((method, path))
    if needed is None:
        raise TypeError(f"the route {method} {path} has no entry in llama_deploy.web.edge.access_table")
    return needed


def check_access(scope: Scope, needed: Requirement, method: str, path: str) -> None:
    """Check that the caller of a request may use a route.

    Args:
        scope: The request.
        needed: What the route needs.
        method: That of the route.
        path: That of the route, as in the table.

    Raises:
        AuthenticationError: The request has no valid key.
        PermissionDeniedError: The key has none of the scopes that the route needs, or is for a tenant or a
            subject that may not use it.
    """
    caller: Caller | None = scope.get("state", {}).get(CALLER)
    if caller is None:
        return
    if needed.is_met_by(caller):
        if not needed.is_open and not needed.tenancy.admits(caller):
            other = "the tenant itself" if needed.tenancy is Tenancy.TENANT else "the default tenant"
            raise PermissionDeniedError(
                f"{method} {path} is about more than what belongs to this caller; use a key of {other}"
            )
        if caller.resource is None or needed.is_for(caller, scope.get("path_params", {})):
            return
        raise PermissionDeniedError(
            f"{method} {path} is not for this token, which is for one {caller.resource.kind} only; use a key"
        )
    if not caller.subject:
        raise AuthenticationError(NO_KEY)
    names = " or ".join(needed.scopes)
    raise PermissionDeniedError(
        f"{method} {path} requires the scope {names}, which this key does not have; use another key",
        scope=names,
    )


def of_shortcuts(
    table: AccessTable, shortcuts: Iterable[tuple[str, str]]
) -> Mapping[tuple[str, str], Requirement]:
    """Return what shortcuts need: the same as the routes that they answer.

    Raises:
        TypeError: One has no entry.
    """
    return {
        (method, path): requirement_of(table, method, _route(table, method, path))
        for method, path in shortcuts
    }


def _route(table: AccessTable, method: str, path: str) -> str:
    """Return the path of the route that a shortcut answers."""
    beginning = f"{path}{{"
    return next((each for other, each in table if other == method and each.startswith(beginning)), path)
