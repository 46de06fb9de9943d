"""Who is named in the audit log for a request."""

from __future__ import annotations

from starlette.types import Scope

from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.types.audit import Actor
from llama_deploy.types.callers import NOBODY, Caller
from llama_deploy.web.edge.authentication import OnDenied
from llama_deploy.web.edge.caller_state import caller_of


def actor_of(plane: ControlPlane, scope: Scope) -> Actor | None:
    """Return who makes a request. None: it leaves no entries."""
    if plane.audit.recorded == "off":
        return None
    return plane.audit.actor(caller_of(scope), _address(scope))


def denials_of(plane: ControlPlane) -> OnDenied | None:
    """Return what records refused requests. None: nothing does."""
    if plane.audit.recorded == "off":
        return None

    def note(scope: Scope, caller: Caller | None, status: int) -> None:
        by = plane.audit.actor(caller or NOBODY, _address(scope))
        if by is not None:
            raw: bytes = scope.get("raw_path") or scope["path"].encode()
            request = f"{scope['method']} {raw.decode('latin-1')}"
            plane.audit.denied.note(by, request, status=status, tenant=(caller or NOBODY).tenant)

    return note


def _address(scope: Scope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None
