"""The routes `/health/live` and `/health/ready` of a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from llama_deploy.health import LIVE_PATH, READY_PATH, Checks, encoded, status_of
from llama_deploy.types.callers import AccessScope
from llama_deploy.web.edge.caller_state import caller_of
from llama_deploy.web.edge.probes import is_brief


class CheckOutcome(BaseModel, use_attribute_docstrings=True):
    """The outcome of one check."""

    ok: bool
    """Whether it has passed."""
    reason: str
    """What is wrong. Empty if it has passed."""


class Health(BaseModel, use_attribute_docstrings=True):
    """What `/health/live` and `/health/ready` answer."""

    status: Literal["ok", "failing"]
    """`ok` if all checks have passed."""
    checks: dict[str, CheckOutcome]
    """The outcomes by the names of the checks."""


def add_health_routes(router: APIRouter, ready: Callable[[], Awaitable[Checks]]) -> None:
    """Add both routes to those of an application, which is served behind `build_edge`.

    Args:
        router: The routes of the application.
        ready: Runs the checks of `/health/ready`.
    """

    @router.get(LIVE_PATH, response_model=Health)
    async def live(request: Request) -> Response:
        """Answer 200: the process answers."""
        return _response(request, {})

    @router.get(
        READY_PATH,
        response_model=Health,
        responses={HTTPStatus.SERVICE_UNAVAILABLE: {"model": Health, "description": "A check fails"}},
    )
    async def is_ready(request: Request) -> Response:
        """Answer 200 while all checks pass, else 503 with what is wrong."""
        return _response(request, await ready())


def may_see_reasons(request: Request) -> bool:
    """Whether a caller learns why a server is not healthy."""
    caller = caller_of(request.scope)
    # The reasons are about all tenants.
    return caller.is_in_default_tenant and (caller.may_do_all or AccessScope.METRICS_READ in caller.scopes)


def _response(request: Request, checks: Checks) -> Response:
    return Response(
        encoded(checks, brief=is_brief(request.scope) or not may_see_reasons(request)),
        status_code=status_of(checks),
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
