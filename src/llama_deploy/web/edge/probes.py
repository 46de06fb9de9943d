"""Probes of the health of a server, whose senders do not know its name."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from llama_deploy.health import LIVE_PATH, READY_PATH

_BRIEF = "llama_deploy.brief"


class BriefProbes:
    """Passes probes for an untrusted host on to the application, which then names no reasons.

    A load balancer may send the host of its own clients. A page whose name resolves to this server learns no
    more than it could measure.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one probe."""
        await self._app({**scope, _BRIEF: True}, receive, send)


def is_probe(scope: Scope) -> bool:
    """Whether a request asks for the health of the server."""
    return scope["method"] in ("GET", "HEAD") and scope["path"] in (LIVE_PATH, READY_PATH)


def is_brief(scope: Scope) -> bool:
    """Whether the answer to a probe must not name reasons."""
    return _BRIEF in scope
