"""Where the caller of a request is kept while it is served."""

from __future__ import annotations

from typing import Final

from starlette.types import Scope

from llama_deploy.types.callers import ANONYMOUS, Caller
from llama_deploy.types.owners import Owner

CALLER: Final = "caller"
"""The key of the caller in the state of a request. Missing: the application is served without the edge."""


def caller_of(scope: Scope) -> Caller:
    """Return who makes a request."""
    caller: Caller = scope.get("state", {}).get(CALLER, ANONYMOUS)
    return caller


def owner_of(scope: Scope) -> Owner:
    """Return whose sessions, tasks and questions a request is about."""
    return caller_of(scope).owner
